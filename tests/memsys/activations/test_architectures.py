"""Bit-exactness of the best known architectures of transformers; all of them are the proof's (test_model_sweep.py)."""

from __future__ import annotations

import pytest
from built import needs_memsys

needs_memsys()
pytest.importorskip("transformers")

from architectures import one_step, tiny_model  # noqa: E402
from gradients import DROPPED, TIERS, assert_idle, assert_same, offloaded  # noqa: E402

import memsys  # noqa: E402


@pytest.mark.parametrize("policy", [*TIERS.values(), DROPPED], ids=[*TIERS, "dropped"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_the_best_known(kind, policy, tmp_path):
    model = tiny_model(kind)
    wanted = [None if tensor is None else tensor.clone() for tensor in one_step(model)]
    offloaded(model, tmp_path, policy)
    for _ in range(2):  # the first step learns the order, and proves what the second drops
        assert_same(one_step(model), wanted)
    assert memsys.stats(model).packed_count > 0
    assert_idle(model)
