"""A million gathers, drawn from ten seeds, against torch's own indexing; CI draws 20,000 among the table's tests."""

from __future__ import annotations

import time

import proof
import pytest
from gather_fuzz import fuzz

pytestmark = [pytest.mark.proof, pytest.mark.nightly, pytest.mark.timeout(4 * 3600)]

SEEDS, GATHERS_PER_SEED = range(100, 110), 100_000


def test_a_million_gathers_are_indexing() -> None:
    begin = time.monotonic()
    for seed in SEEDS:
        fuzz(seed, GATHERS_PER_SEED)
    proof.record("R7", "gathers", measure="drawn gathers that differ from torch's indexing, or write beside the output",
                 figure=f"0 of {len(SEEDS) * GATHERS_PER_SEED:,}", target="0 of 1,000,000", is_met=True,
                 seconds=time.monotonic() - begin, seeds=list(SEEDS))  # fmt: skip
