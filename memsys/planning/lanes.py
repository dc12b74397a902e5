"""The clock of a schedule: compute and the lanes of each link go on side by side, and hold one another up.

A lane carries one transfer at a time. Both directions of a link share its `both_rate` while both are busy; compute
slows down by each busy lane's share and stands still while it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from memsys.errors import InputError
from memsys.planning.swap_plan import Link

_ENDED_US = 1e-9  # what rounding may leave of a transfer


class Slice(NamedTuple):
    """What a lane did in the half-open range [begin_us, end_us) of the step's time; span: which one."""

    lane: str
    begin_us: float
    end_us: float
    bytes: int
    span: int


class Lane:
    """One direction of one link: a queue, and how much of its head is left to do at the full rate."""

    __slots__ = (
        *("begin_us", "bytes", "index", "latency_us", "left_us", "moved_bytes", "name"),
        *("on_end", "other", "queue", "shared_pace", "speed", "us_per_byte"),
    )

    def __init__(self, name: str, link: Link, rate: float, on_end: Callable[[int], None]) -> None:
        self.name = name
        self.us_per_byte = 1e6 / rate
        self.latency_us = link.latency_us
        self.speed = 1.0 - link.slowdown  # of compute while this lane is busy
        both_rate = link.both_rate or link.out_rate + link.in_rate
        self.shared_pace = min(1.0, both_rate / (link.out_rate + link.in_rate))
        self.on_end = on_end
        self.other: Lane | None = None
        self.queue: deque[tuple[int, int]] = deque()
        self.index, self.bytes, self.left_us, self.begin_us = -1, 0, 0.0, 0.0
        self.moved_bytes = 0


class Clock:
    """The time since the step began, and what each lane is doing."""

    def __init__(self) -> None:
        self.now_us = 0.0
        self.stall_us = 0.0
        self.slices: list[tuple[str, float, float, int, int]] = []  # as Slice; plain, since there are many
        self._busy: list[Lane] = []

    def add_link(self, name: str, link: Link, on_left: Callable[[int], None],
                 on_arrived: Callable[[int], None]) -> tuple[Lane, Lane]:  # fmt: skip
        """The out and the in lane of a link; the callables are given a span's index when its transfer has ended."""
        if min(link.out_rate, link.in_rate) <= 0 or not 0 <= link.slowdown < 1:
            raise InputError(
                f"hardware: the {name} link has rates of {link.out_rate} out and {link.in_rate} in, and a slowdown of "
                f"{link.slowdown}; wanted rates above 0 and a slowdown from 0 to below 1"
            )
        out_lane = Lane(f"{name} out", link, link.out_rate, on_left)
        in_lane = Lane(f"{name} in", link, link.in_rate, on_arrived)
        out_lane.other, in_lane.other = in_lane, out_lane
        return out_lane, in_lane

    def start(self, lane: Lane, index: int, bytes_: int) -> None:
        """Queues a transfer."""
        if lane.index < 0:
            self._begin(lane, index, bytes_)
            self._busy.append(lane)
        else:
            lane.queue.append((index, bytes_))

    def compute(self, us: float) -> None:
        """Lets `us` of compute pass, and as much of the transfers as fits beside it."""
        busy = self._busy
        while busy:
            if len(busy) == 1:  # the common case, without a call
                lane = busy[0]
                if lane.left_us * lane.speed > us:
                    lane.left_us -= us / lane.speed
                    self.now_us += us / lane.speed
                    return
                us -= lane.left_us * lane.speed
                self.now_us += lane.left_us
                self._end(lane)
                continue
            speed = 1.0
            for lane in busy:
                speed *= lane.speed
            us -= self._pass(us / speed) * speed
            if us < _ENDED_US:
                return
        self.now_us += us

    def wait(self) -> bool:
        """Stands still until a transfer ends; False if none is under way."""
        if not self._busy:
            return False
        self.stall_us += self._pass(float("inf"))
        return True

    def drain(self) -> None:
        """Lets what is still under way end."""
        while self._busy:
            self._pass(float("inf"))

    def _pass(self, limit_us: float) -> float:
        """Goes on to the end of the first transfer, or by `limit_us` if that is sooner; returns by how much."""
        busy = self._busy
        paces = [1.0 if lane.other.index < 0 else lane.shared_pace for lane in busy]
        passed_us = min(limit_us, min(lane.left_us / pace for lane, pace in zip(busy, paces, strict=True)))
        self.now_us += passed_us
        ended = []
        for lane, pace in zip(busy, paces, strict=True):
            lane.left_us -= passed_us * pace
            if lane.left_us <= _ENDED_US:
                ended.append(lane)
        for lane in ended:
            self._end(lane)
        return passed_us

    def _begin(self, lane: Lane, index: int, bytes_: int) -> None:
        lane.index, lane.bytes, lane.begin_us = index, bytes_, self.now_us
        lane.left_us = lane.latency_us + bytes_ * lane.us_per_byte

    def _end(self, lane: Lane) -> None:
        index = lane.index
        self.slices.append((lane.name, lane.begin_us, self.now_us, lane.bytes, index))
        lane.moved_bytes += lane.bytes
        if lane.queue:
            self._begin(lane, *lane.queue.popleft())
        else:
            lane.index = -1
            self._busy.remove(lane)
        lane.on_end(index)
