"""Times a copy with CUDA events: the median of several rounds, in GB/s."""

import statistics
from collections.abc import Callable

import torch

ROUND_COUNT = 9


def rate_gbs(copy: Callable[[], None], moved_bytes: int, stream: torch.cuda.Stream) -> float:
    """The median rate of `copy`, which issues on `stream`; the first round warms up and is not counted."""
    rates = []
    for _ in range(ROUND_COUNT + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        copy()
        end.record(stream)
        end.synchronize()
        rates.append(moved_bytes / begin.elapsed_time(end) / 1e6)
    return round(statistics.median(rates[1:]), 2)
