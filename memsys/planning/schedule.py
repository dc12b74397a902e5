"""What a plan comes to, step by step: the engine's own rules over the model of its links, and a timeline of it all.

The rules are those of `memsys.activations.mover`: what leaves is held until it has left, at most a window of it, or
compute stalls; backward prefetches in its order, as far ahead as window and device budget allow; what is wanted and
not there is fetched on demand. One sweep over the step's events, each of them handled once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from memsys.planning.lanes import Clock, Lane, Slice
from memsys.planning.swap_plan import Budgets, Hardware, Prediction, SwapPlan
from memsys.planning.trace import StepTrace
from memsys.planning.work import FILE, HOST, Columns, Kind, Work, lay_out

TIERS = ("host", "file")


@dataclass(frozen=True)
class Overrun:
    """A tier that a plan does not fit, and how many bytes of it the plan wants at its worst moment."""

    tier: str
    wanted_bytes: int
    budget_bytes: int


@dataclass(frozen=True)
class Schedule:
    """A step under a plan; overruns: the budgets that it breaks, none if it fits. (What happened is kept as plain
    tuples, and made readable when it is asked for: a planner asks for nothing but the prediction.)"""

    predicted: Prediction
    overruns: tuple[Overrun, ...]
    events: list[tuple[str, float, float, int, int]]
    changes: list[tuple[int, float, int]]

    @property
    def fits(self) -> bool:
        return not self.overruns

    @property
    def slices(self) -> tuple[Slice, ...]:
        """What each lane did ("host out", "file in", ...), and the "stall" and "remake" of compute."""
        return tuple(Slice(*event) for event in self.events)

    @property
    def levels(self) -> dict[str, list[tuple[float, int]]]:
        """By tier, "device" first: the time, and the bytes from then on."""
        found = {name: [(0.0, 0)] for name in ("device", *TIERS)}
        names = (*TIERS, "device")
        for tier, us, bytes_ in self.changes:
            found[names[tier]].append((us, bytes_))
        return found


# Where the bytes of a span that moves are. (Numbers, since the sweep compares them a million times.)
_NOWHERE = 0
_LEAVING = 1  # the source is held
_READ_LEAVING = 2  # backward reads the source itself
_AWAY = 3
_ARRIVING = 4
_HERE = 5


def window_bytes(hardware: Hardware, budgets: Budgets) -> int:
    """How much leaves, and how much is prefetched, at once: no more than a quarter of the device budget."""
    if budgets.device_bytes is None:
        return hardware.window_bytes
    return min(hardware.window_bytes, budgets.device_bytes // 4)


def schedule(trace: StepTrace, plan: SwapPlan, hardware: Hardware, budgets: Budgets) -> Schedule:
    """Steps the plan through the trace. A plan that does not fit is carried out all the same, over its budgets, which
    `overruns` names. Raises InputError for a plan that can't be carried out."""
    return Stepper(trace, hardware, budgets).step(plan, is_recorded=True)


class Stepper:
    """`schedule` for many plans of one trace."""

    def __init__(self, trace: StepTrace, hardware: Hardware, budgets: Budgets) -> None:
        self.columns = Columns(trace)
        self.hardware = hardware
        self.budgets = budgets

    def step(self, plan: SwapPlan, is_recorded: bool = False) -> Schedule:
        """As `schedule`; without a record there are no levels, only their peaks, which takes less time."""
        trace = self.columns.trace
        sweep = _Sweep(lay_out(self.columns, plan, self.hardware), self.hardware, self.budgets, is_recorded)
        return sweep.run(trace.forward_us, trace.forward_us + trace.backward_us)


class _Sweep:
    """The state of a step on its way through the events."""

    def __init__(self, work: Work, hardware: Hardware, budgets: Budgets, is_recorded: bool) -> None:
        self.work = work
        self.clock = clock = Clock()
        self.remade_us = 0.0
        self.limit_bytes = float("inf") if budgets.device_bytes is None else budgets.device_bytes
        self.window_bytes = window_bytes(hardware, budgets)
        self.budgets = budgets
        links = (hardware.host, hardware.file)
        self.lanes: list[tuple[Lane, Lane] | None] = [
            None if link is None else clock.add_link(name, link, self._leave, self._arrive)
            for name, link in zip(TIERS, links, strict=True)
        ]
        count = len(work.bytes)
        self.state = [_NOWHERE] * count
        self.on_device = [0] * count  # given back at the last use
        self.departures: deque[int] = deque()
        self.has_left = [False] * count
        self.held_bytes = 0
        self.ahead_bytes = 0  # prefetched and not yet taken
        self.ahead: dict[int, None] = {}  # in their order
        self.reads = work.reads
        self.cursor = 0
        self.device_bytes = self.device_peak = 0
        self.tier_bytes, self.tier_peak = [0, 0], [0, 0]
        self.is_recorded = is_recorded
        self.changes: list[tuple[int, float, int]] = []  # of levels

    def run(self, forward_us: float, step_us: float) -> Schedule:
        clock, at_us, turned_us = self.clock, 0.0, 0.0
        handlers = [self._save, None, self._read, self._revive, self._release]  # by Kind
        work, turn = self.work, Kind.BACKWARD.value
        for us, kind, index in zip(work.event_us, work.event_kind, work.event_index, strict=True):
            if us > at_us:
                clock.compute(us - at_us)
                at_us = us
            if kind == turn:
                turned_us = clock.now_us
            else:
                handlers[kind](index)
        if step_us > at_us:
            clock.compute(step_us - at_us)
        ended_us = clock.now_us
        clock.drain()
        return self._result(turned_us, ended_us)

    def _result(self, turned_us: float, ended_us: float) -> Schedule:
        lanes = [lanes for lanes in self.lanes if lanes is not None]
        predicted = Prediction(
            step_us=ended_us, forward_us=turned_us, backward_us=ended_us - turned_us, stall_us=self.clock.stall_us,
            remade_us=self.remade_us, peak_device_bytes=self.device_peak, peak_host_bytes=self.tier_peak[HOST],
            peak_file_bytes=self.tier_peak[FILE], out_bytes=sum(lane.moved_bytes for lane, _ in lanes),
            in_bytes=sum(lane.moved_bytes for _, lane in lanes),
        )  # fmt: skip
        budgets = self.budgets
        wants = (
            ("device", self.device_peak, budgets.device_bytes), ("host", self.tier_peak[HOST], budgets.host_bytes),
            ("file", self.tier_peak[FILE], budgets.file_bytes),
        )  # fmt: skip
        overruns = (Overrun(*want) for want in wants if want[2] is not None and want[1] > want[2])
        return Schedule(predicted, tuple(overruns), self.clock.slices, self.changes)

    # Forward -------------------------------------------------------------------------------------------------------

    def _save(self, index: int) -> None:
        moved, tier = self.work.moved[index], self.work.tier[index]
        if moved:
            self._make_room(index, moved)
            self.departures.append(index)
            self.held_bytes += moved
            self.state[index] = _LEAVING
            self._count(moved)
            self._count_below(tier, moved)
            self.clock.start(self.lanes[tier][0], index, moved)
        elif self.work.kept[index]:
            bytes_ = self.on_device[index] = self.work.kept[index]
            if self.device_bytes + bytes_ > self.limit_bytes:
                self._stall(index, lambda: self.departures and self.device_bytes + bytes_ > self.limit_bytes)
            self._count(bytes_)

    def _make_room(self, index: int, bytes_: int) -> None:
        if not self._has_room(bytes_):
            self._stall(index, lambda: self.departures and not self._has_room(bytes_))

    def _has_room(self, bytes_: int) -> bool:
        within = self.held_bytes == 0 or self.held_bytes + bytes_ <= self.window_bytes
        return within and self.device_bytes + bytes_ <= self.limit_bytes

    def _leave(self, index: int) -> None:
        """A span's bytes are below; sources are let go in the order in which they began to leave."""
        self.has_left[index] = True
        while self.departures and self.has_left[self.departures[0]]:
            first = self.departures.popleft()
            moved = self.work.moved[first]
            self.held_bytes -= moved
            if self.state[first] == _READ_LEAVING:
                self.on_device[first] += moved  # until its last use
                self.state[first] = _HERE
            else:
                self._count(-moved)
                self.state[first] = _AWAY

    # Backward ------------------------------------------------------------------------------------------------------

    def _read(self, index: int) -> None:
        if self.work.moved[index]:
            self._fetch(index)
        elif self.work.remake_us[index] is not None:
            bytes_ = self.on_device[index] = self.work.bytes[index]
            self._claim(index, bytes_)
            self._remake(index, bytes_, self.work.remake_us[index])
        if self.cursor < len(self.reads):
            self._prefetch()

    def _fetch(self, index: int) -> None:
        state = self.state
        if state[index] == _LEAVING:
            state[index] = _READ_LEAVING
            return
        if state[index] == _AWAY:
            self._claim(index, self.work.moved[index])
            self._start_arrival(index)
        if state[index] == _ARRIVING:
            self._stall(index, lambda: state[index] == _ARRIVING)
        if index in self.ahead:
            del self.ahead[index]
            self.ahead_bytes -= self.work.moved[index]

    def _start_arrival(self, index: int) -> None:
        moved = self.work.moved[index]
        self.state[index] = _ARRIVING
        self.on_device[index] += moved
        self._count(moved)
        self.clock.start(self.lanes[self.work.tier[index]][1], index, moved)

    def _arrive(self, index: int) -> None:
        self.state[index] = _HERE

    def _prefetch(self) -> None:
        while self.cursor < len(self.reads):
            index = self.reads[self.cursor]
            if self.state[index] == _AWAY and index not in self.ahead:
                moved = self.work.moved[index]
                if self.ahead_bytes > 0 and self.ahead_bytes + moved > self.window_bytes:
                    return
                if self.device_bytes + moved > self.limit_bytes:
                    return
                self.ahead_bytes += moved
                self.ahead[index] = None
                self._start_arrival(index)
            self.cursor += 1

    def _claim(self, index: int, bytes_: int) -> None:
        """Counts bytes that are wanted now; waits for their room, at last gives up what was prefetched."""
        if self.device_bytes + bytes_ > self.limit_bytes:
            self._stall(index, lambda: self.device_bytes + bytes_ > self.limit_bytes)
            if self.device_bytes + bytes_ > self.limit_bytes:
                self._give_up_ahead()

    def _give_up_ahead(self) -> None:
        for index in self.ahead:
            moved = self.work.moved[index]
            self.state[index] = _AWAY
            self.on_device[index] -= moved
            self.ahead_bytes -= moved
            self._count(-moved)
        self.ahead.clear()

    def _revive(self, place: int) -> None:
        revival = self.work.revivals[place]
        for index in revival.members:
            if self.work.moved[index]:
                self._fetch(index)
        self._claim(revival.members[0], revival.bytes)
        for index in revival.members:
            self.on_device[index] += self.work.revived[index]
        self._remake(revival.members[0], revival.bytes, revival.remake_us)

    def _remake(self, index: int, bytes_: int, us: float) -> None:
        self._count(bytes_)
        begin_us = self.clock.now_us
        self.clock.compute(us)
        self.remade_us += us
        self.clock.slices.append(("remake", begin_us, self.clock.now_us, bytes_, index))

    def _release(self, index: int) -> None:
        if self.on_device[index]:
            self._count(-self.on_device[index])
            self.on_device[index] = 0
        if self.state[index] == _READ_LEAVING:
            self.state[index] = _LEAVING  # its room comes back when it has left
        if self.work.moved[index]:
            self._count_below(self.work.tier[index], -self.work.moved[index])

    # Counting ------------------------------------------------------------------------------------------------------

    def _stall(self, index: int, is_short: Callable[[], bool]) -> None:
        """Waits, transfer by transfer, while `is_short()` and something is under way."""
        begin_us = self.clock.now_us
        while is_short() and self.clock.wait():
            pass
        if self.clock.now_us > begin_us:
            self.clock.slices.append(("stall", begin_us, self.clock.now_us, self.work.bytes[index], index))

    def _count(self, bytes_: int) -> None:
        self.device_bytes += bytes_
        if self.device_bytes > self.device_peak:
            self.device_peak = self.device_bytes
        if self.is_recorded:
            self.changes.append((-1, self.clock.now_us, self.device_bytes))

    def _count_below(self, tier: int, bytes_: int) -> None:
        level = self.tier_bytes[tier] = self.tier_bytes[tier] + bytes_
        if level > self.tier_peak[tier]:
            self.tier_peak[tier] = level
        if self.is_recorded:
            self.changes.append((tier, self.clock.now_us, level))
