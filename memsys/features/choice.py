"""How a gather on a CPU runs, as a pure function of sizes, so that the choice can be printed and tested."""

from __future__ import annotations

from typing import NamedTuple

# Smaller outputs come from torch's allocator, whose free lists serve them without a page fault.
MIN_POOLED_BYTES = 256 << 10


class GatherChoice(NamedTuple):
    """Threads, whether the output comes from the pool, and whether the index is visited by region of the table."""

    thread_count: int
    is_pooled: bool
    by_region: bool
    reason: str


def choose(row_bytes: int, index_count: int, thread_count: int, is_child: bool = False) -> GatherChoice:
    """The choice for `index_count` rows of `row_bytes` bytes; a forked child has neither threads nor pool.

    Visiting by region is never chosen: it sorts the index and then writes rows in a random order, which took 1.5 to 2
    times as long as the order given for rows of 256 to 2408 bytes (2 cores, 200,000 of 2 million rows).
    """
    if is_child:
        return GatherChoice(1, False, False, "a forked child: one thread, no pool")
    is_pooled = row_bytes * index_count >= MIN_POOLED_BYTES
    return GatherChoice(thread_count, is_pooled, False, "rows in the order given")
