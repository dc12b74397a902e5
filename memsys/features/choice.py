"""How a gather on a CPU runs, as a pure function of sizes, so that the choice can be tested."""

from __future__ import annotations

from typing import NamedTuple

# Smaller outputs come from torch's allocator, whose free lists serve them without a page fault.
MIN_POOLED_BYTES = 256 << 10


class GatherChoice(NamedTuple):
    """Threads, and whether the output comes from the pool."""

    thread_count: int
    is_pooled: bool


def choose(row_bytes: int, index_count: int, thread_count: int, is_child: bool = False) -> GatherChoice:
    """The choice for `index_count` rows of `row_bytes` bytes; a forked child has neither threads nor pool."""
    if is_child:
        return GatherChoice(1, False)
    return GatherChoice(thread_count, row_bytes * index_count >= MIN_POOLED_BYTES)
