"""What memsys asks of torch's CUDA allocator beyond memory itself: its history. Like _tensor.py, a home for names that
are private to torch, each behind a function with a plain meaning.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class HistoryEvent(NamedTuple):
    """One thing that the caching allocator did. stream: 0 the default one, others counted as they appear."""

    is_allocation: bool
    address: int
    bytes: int
    stream: int
    at_us: float


def begin_history() -> None:
    """Has the allocator note what it is asked for from here on."""
    torch.cuda.memory._record_memory_history(enabled="all", context=None)


def end_history(device: torch.device) -> list[HistoryEvent]:
    """What the allocator was asked for on `device` since begin_history, in order; it notes no more."""
    traces = torch.cuda.memory._snapshot()["device_traces"]
    torch.cuda.memory._record_memory_history(enabled=None)
    return events_of(traces[device.index if device.index is not None else torch.cuda.current_device()])


def events_of(trace: list[dict[str, object]]) -> list[HistoryEvent]:
    """The requests and releases in the trace of one device; segments taken from the driver are left out."""
    streams: dict[object, int] = {0: 0}
    return [
        HistoryEvent(
            event["action"] == "alloc",
            event["addr"],
            event["size"],
            streams.setdefault(event["stream"], len(streams)),
            event.get("time_us", 0),
        )
        for event in trace
        if event["action"] in ("alloc", "free_requested")
    ]
