"""What a stretch of training did with links and memory: slices by lane, levels by tier, as measured or as planned.

Numbers only: `memsys.record_timeline` fills a Timeline, report/perfetto.py and report/picture.py show one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

COMPUTE, STALL, REMAKE = "compute", "stall", "remake"  # the last two are parts of the first
LINKS = ("host out", "host in", "file out", "file in")
LANES = (COMPUTE, STALL, REMAKE, *LINKS)
TIERS = ("device", "host", "file")


@dataclass(frozen=True)
class Slice:
    """A lane that is busy over the half-open range [begin_us, end_us).

    lane: one of LANES; bytes: moved; span: the place of what moved among the tensors that its forward saved (-1:
    not one of them); name: "forward", "backward", or what moved; issued_us: when the transfer began, if
    others of its lane ended in between; touches_device: False for a hop between two tiers below the device.
    """

    lane: str
    begin_us: float
    end_us: float
    bytes: int = 0
    span: int = -1
    name: str = ""
    issued_us: float | None = None
    touches_device: bool = True
    is_failed: bool = False


class Plan(Protocol):
    """A schedule to be shown beside what was measured; its times count from the step's first operation."""

    slices: Iterable[Slice]  # anything with lane, begin_us, end_us, bytes, span
    levels: Mapping[str, Sequence[tuple[float, int]]]


@dataclass
class Timeline:
    """A record of one or more steps; times are microseconds from its begin.

    slices: by lane, in the order of time, those of one lane never overlapping; levels: for each tier (time, bytes in
    use from then on); limits: the budgets in bytes (None: no bound); duration_us: of the whole record; dropped_count:
    entries that no longer fitted (the oldest go first); planned: what was to happen, if a plan said so.
    """

    slices: tuple[Slice, ...] = ()
    levels: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)
    limits: Mapping[str, int | None] = field(default_factory=dict)
    duration_us: float = 0.0
    dropped_count: int = 0
    planned: Plan | None = None

    def lane(self, name: str) -> list[Slice]:
        return [slice_ for slice_ in self.slices if slice_.lane == name]

    def busy_us(self, lane: str) -> float:
        """How long the lane was busy."""
        return sum(slice_.end_us - slice_.begin_us for slice_ in self.lane(lane))

    def busy_share(self, lane: str) -> float:
        """Of the record's duration."""
        return self.busy_us(lane) / self.duration_us if self.duration_us > 0 else 0.0

    def peak_bytes(self, tier: str) -> int:
        return max((bytes_ for _, bytes_ in self.levels.get(tier, ())), default=0)

    @property
    def out_bytes(self) -> int:
        """Bytes that left the device, each counted once however many tiers they went through."""
        return self._moved("out")

    @property
    def in_bytes(self) -> int:
        """Bytes that came back to the device."""
        return self._moved("in")

    def _moved(self, direction: str) -> int:
        moved = (slice_ for slice_ in self.slices if slice_.lane in LINKS and slice_.lane.endswith(direction))
        return sum(slice_.bytes for slice_ in moved if slice_.touches_device and not slice_.is_failed)

    @property
    def last_step_us(self) -> float:
        """When the last forward began."""
        return max((slice_.begin_us for slice_ in self.lane(COMPUTE) if slice_.name == "forward"), default=0.0)

    def summary(self) -> dict[str, object]:
        """The record in a few numbers, all but shares and times in bytes."""
        return {
            "duration_us": self.duration_us,
            "stall_us": self.busy_us(STALL),
            "remake_us": self.busy_us(REMAKE),
            "busy_share": {lane: self.busy_share(lane) for lane in (COMPUTE, *LINKS)},
            "lane_bytes": {lane: sum(slice_.bytes for slice_ in self.lane(lane)) for lane in LINKS},
            "out_bytes": self.out_bytes,
            "in_bytes": self.in_bytes,
            "peak_bytes": {tier: self.peak_bytes(tier) for tier in TIERS},
            "dropped_count": self.dropped_count,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes Chrome-trace JSON, which https://ui.perfetto.dev and chrome://tracing open."""
        from memsys.report.perfetto import write_trace

        write_trace(self, path)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws memory by tier and use of the links over time, planned beside measured, as a PNG.

        Raises:
            UnsupportedError: matplotlib is not installed; the message names the extra that brings it.
        """
        from memsys.report.picture import draw_timeline

        draw_timeline(self, path)


def in_service(transfers: Iterable[Slice]) -> list[Slice]:
    """The transfers of one lane without overlap: the lane's time belongs to the one that ends next.

    Several may be under way at once (a queue of a disk holds many); their slices then follow one another and cover
    exactly the time in which at least one was under way.
    """
    ordered = sorted(transfers, key=lambda slice_: (slice_.end_us, slice_.begin_us))
    first_begins: list[float] = []
    for slice_ in reversed(ordered):
        first_begins.append(min(slice_.begin_us, first_begins[-1]) if first_begins else slice_.begin_us)
    served, free_us = [], float("-inf")
    for slice_, first_us in zip(ordered, reversed(first_begins), strict=True):
        begin_us = max(free_us, first_us)
        issued_us = slice_.begin_us if begin_us != slice_.begin_us else None
        served.append(replace(slice_, begin_us=begin_us, issued_us=issued_us))
        free_us = slice_.end_us
    return served
