"""How a gather runs: a pure function of sizes."""

from __future__ import annotations

import pytest
from built import needs_memsys

needs_memsys()

from memsys.features import choice  # noqa: E402


@pytest.mark.parametrize(("count", "is_pooled"), [(0, False), (1023, False), (1024, True), (10**9, True)])
def test_large_outputs_are_pooled(count, is_pooled):
    chosen = choice.choose(256, count, 7)
    assert (chosen.thread_count, chosen.is_pooled) == (7, is_pooled)


def test_a_forked_child_is_alone():
    chosen = choice.choose(256, 10**9, 7, is_child=True)
    assert (chosen.thread_count, chosen.is_pooled) == (1, False)
