"""Runs a plan of addresses on the host: every request of a recorded step is served by a real slab, carries a pattern of
its own at both ends while it lives, and is looked at before it goes. An overlap of two live requests breaks a pattern.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from memsys import _C
from memsys.errors import CorruptionError
from memsys.planning.addresses import AddressPlan
from memsys.planning.caching_model import events_of

_EDGE = 16  # bytes of pattern at each end


@dataclass(frozen=True)
class SlabReplay:
    """What the slab came to: of device memory taken, and served as planned."""

    reserved_peak_bytes: int
    live_peak_bytes: int
    hit_count: int
    miss_count: int
    upstream_count: int

    @property
    def ratio(self) -> float:
        return self.reserved_peak_bytes / self.live_peak_bytes if self.live_peak_bytes else 1.0


def slab_arguments(plan: AddressPlan) -> tuple[list[int], list[int], int]:
    """What a slab has to know of a plan: bytes and offset of each planned request, and its own size."""
    placed = [(r.bytes, offset) for r, offset in zip(plan.requests, plan.offsets, strict=True) if offset >= 0]
    return [bytes_ for bytes_, _ in placed], [offset for _, offset in placed], plan.peak_bytes


def replay_on_slab(plan: AddressPlan, runtime: _C.Runtime, steps: int = 2) -> SlabReplay:
    """Replays the planned requests of a step, `steps` times, on the runtime's device, which is the host.

    Raises CorruptionError if a request did not find its pattern again, MemsysError if live blocks overlap.
    """
    slab = _C.PlannedSlab(runtime, *slab_arguments(plan))
    events = [event for event in events_of(plan.requests) if plan.offsets[event[1]] >= 0]
    for _ in range(steps):
        slab.begin_step()
        addresses: dict[int, int] = {}
        for is_allocation, index in events:
            if is_allocation:
                addresses[index] = slab.allocate(plan.requests[index].bytes)
                _mark(addresses[index], plan.requests[index].bytes, index)
            else:
                _look(addresses[index], plan.requests[index].bytes, index)
                slab.free(addresses.pop(index))
        slab.end_step()
        slab.check()
    stats = slab.stats()
    return SlabReplay(stats["peak_reserved_bytes"], stats["peak_live_bytes"], stats["hit_count"], stats["miss_count"],
                      stats["upstream_count"])  # fmt: skip


def _pattern(index: int, bytes_: int) -> bytes:
    return (index.to_bytes(8, "little") * 2)[: min(_EDGE, bytes_)]


def _mark(address: int, bytes_: int, index: int) -> None:
    pattern = _pattern(index, bytes_)
    ctypes.memmove(address, pattern, len(pattern))
    ctypes.memmove(address + bytes_ - len(pattern), pattern, len(pattern))


def _look(address: int, bytes_: int, index: int) -> None:
    # Where the two ends of a small block overlap, the last one written counts.
    pattern = _pattern(index, bytes_)
    last = ctypes.string_at(address + bytes_ - len(pattern), len(pattern))
    first = ctypes.string_at(address, min(len(pattern), bytes_ - len(pattern)))
    if last != pattern or first != pattern[: len(first)]:
        raise CorruptionError(f"request {index} of {bytes_} bytes lost its pattern: another that is alive shares its "
                              "place; plan the addresses again")  # fmt: skip
