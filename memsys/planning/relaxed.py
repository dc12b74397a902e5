"""The plan as a linear program: any share of a span may be kept, moved or made again, and time goes in stretches.

Link capacity, window and device budget hold at the end of every stretch of forward and of backward, in both directions
and for both tiers. All that is left out (order within a stretch, latency, what inputs need) only adds time, so the
optimum bounds every plan, as the one in `bound` does; and it knows the window, and where bytes are saved and read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memsys.planning.layers import layer_spans
from memsys.planning.menu import Menu
from memsys.planning.program import Program
from memsys.planning.schedule import window_bytes
from memsys.planning.swap_plan import Budgets, Hardware, Link

_STRETCHES = 64  # of each direction
_TOLERANCE = 1e-6  # of the solver's answer
_PARTS = 1000.0  # a step, and what it saves, in units that suit the solver


@dataclass(frozen=True)
class Shares:
    """What the relaxation does with each span, as shares of it, by span index."""

    bound_us: float
    host: np.ndarray
    file: np.ndarray
    own: np.ndarray  # made again by its operation
    rows: np.ndarray  # made again with its segment
    kept: np.ndarray


def relax(menu: Menu, hardware: Hardware, budgets: Budgets, limit_s: float) -> Shares | None:
    """The relaxation's optimum; None if it was not found within the time, or nothing fits. Raises UnsupportedError
    without HiGHS."""
    model = _Model(menu, hardware, budgets)
    model.forward()
    model.backward()
    return model.shares(limit_s)


class _Model:
    def __init__(self, menu: Menu, hardware: Hardware, budgets: Budgets) -> None:
        self.menu, self.budgets = menu, budgets
        self.alive = np.flatnonzero(menu.saved_us <= menu.turn_us)
        self.byte_unit = max(1.0, float(menu.bytes.sum()) / _PARTS)
        self.us_unit = max(1e-9, (menu.trace.forward_us + menu.trace.backward_us) / _PARTS)
        self.size = menu.bytes / self.byte_unit
        self.links: list[Link] = [link for link in (hardware.host, hardware.file) if link is not None]
        self.names = [name for name, link in (("host", hardware.host), ("file", hardware.file)) if link is not None]
        widest = float(menu.bytes.max(initial=0))
        self.window = max(float(window_bytes(hardware, budgets)), widest) / self.byte_unit
        self.device = (budgets.device_bytes or 0) / self.byte_unit
        self.program = Program()
        count = len(menu.bytes)
        self.moved = [self._spans(count, np.ones(count, bool)) for _ in self.links]
        self.own = self._spans(count, menu.own_price < np.inf)
        self.makers: list[tuple[np.ndarray, np.ndarray]] = []  # (span indices, shares made again) of whole stretches
        self._make_shares()
        self._share_out()

    def _spans(self, count: int, can_be: np.ndarray) -> np.ndarray:
        """A share for each span of which that can be, -1 for others."""
        found = np.full(count, -1)
        chosen = self.alive[can_be[self.alive]]
        found[chosen] = self.program.add(len(chosen), upper=1.0)
        return found

    def _make_shares(self) -> None:
        """The time of all that is made again is one variable; a segment's share is that of its spans, or more."""
        menu, program = self.menu, self.program
        self.remake = int(program.add(1, cost=1.0)[0])
        chosen = self.own[self.own >= 0]
        prices = (menu.own_price * menu.bytes / self.us_unit)[self.own >= 0]
        terms: list[tuple[object, object]] = [(self.remake, -1.0), (chosen, prices)]
        stretches = [(menu.divisible[id_], segment.remake_us) for id_, segment in menu.segments.items()]
        self.segment_count = len(stretches)
        if menu.may_rerun:
            stretches += [(list(layer.inner), layer.forward_us) for layer in layer_spans(menu.trace).values()]
        is_alive = np.zeros(len(menu.bytes), bool)
        is_alive[self.alive] = True
        for members, us in stretches:
            spans = np.array([index for index in members if is_alive[index]], dtype=int)
            shares, whole = program.add(len(spans), upper=1.0), program.add(1, upper=1.0)
            for share in shares:
                program.row(-np.inf, 0.0, (share, 1.0), (whole, -1.0))
            terms.append((whole, us / self.us_unit))
            self.makers.append((spans, shares))
        program.row(0.0, 0.0, *terms)

    def _share_out(self) -> None:
        """Shares of a span come to one; what is kept is a variable of its own."""
        program, count = self.program, len(self.menu.bytes)
        self.kept = self._spans(count, np.ones(count, bool))
        made: dict[int, list[int]] = {}
        for spans, shares in self.makers:
            for index, share in zip(spans.tolist(), shares.tolist(), strict=True):
                made.setdefault(index, []).append(share)
        self.made = made
        for index in self.alive.tolist():
            columns = [int(self.kept[index]), *(int(moved[index]) for moved in self.moved), *made.get(index, ())]
            columns += [int(self.own[index])] * bool(self.own[index] >= 0)
            program.row(1.0, 1.0, (np.array(columns), 1.0))
        limits = {"host": self.budgets.host_bytes, "file": self.budgets.file_bytes}
        for name, moved in zip(self.names, self.moved, strict=True):
            if limits[name] is not None:
                program.row(-np.inf, limits[name] / self.byte_unit, *self._bytes(moved, self.alive))

    def _bytes(self, shares: np.ndarray, spans: np.ndarray, factor: float = 1.0) -> list[tuple[object, object]]:
        """The bytes of some spans' shares, as terms of a row."""
        chosen = spans[shares[spans] >= 0]
        return [(shares[chosen], factor * self.size[chosen])] if len(chosen) else []

    def _chain(self, before: int | None, terms: list[tuple[object, object]]) -> int:
        """A variable that is the one before it, and the terms."""
        now = int(self.program.add(1)[0])
        last = [] if before is None else [(before, 1.0)]
        self.program.row(0.0, 0.0, (now, -1.0), *last, *terms)
        return now

    def _rate(self, rate: float) -> float:
        return rate / 1e6 * self.us_unit / self.byte_unit

    def forward(self) -> None:
        program, menu = self.program, self.menu
        ends = _ends(menu.saved_us[self.alive])
        kept: int | None = None
        queues: list[int | None] = [None] * len(self.links)
        before_us = 0.0
        for inside, end_us in zip(_between(self.alive, menu.saved_us, ends), ends, strict=True):
            early = inside[menu.saved_us[inside] < end_us]
            wall, stall = self._stretch(end_us - before_us)
            for place, link in enumerate(self.links):
                queues[place] = self._send(place, link, queues[place], (inside, early), (wall, stall))
            kept = self._chain(kept, self._bytes(self.kept, inside))
            held = [(queue, 1.0) for queue in queues]
            program.row(-np.inf, self.window, *held) if held else None
            program.row(-np.inf, self.device, (kept, 1.0), *held)
            before_us = end_us
        wall, stall = self._stretch(menu.turn_us - before_us)
        nothing = np.array([], dtype=int)
        for place, link in enumerate(self.links):
            queues[place] = self._send(place, link, queues[place], (nothing, nothing), (wall, stall))
        program.row(-np.inf, self.device, (kept, 1.0), *((queue, 1.0) for queue in queues))
        self.queues = queues

    def _stretch(self, compute_us: float) -> tuple[int, int]:
        """The time of a stretch of compute, at least that of its compute; and of standing still at its end."""
        wall = int(self.program.add(1, cost=1.0, lower=compute_us / self.us_unit)[0])
        return wall, int(self.program.add(1, cost=1.0)[0])

    def _send(self, place: int, link: Link, queue: int | None, saved: tuple[np.ndarray, np.ndarray],
              times: tuple[int, int]) -> int:  # fmt: skip
        """What a lane sends in a stretch: beside compute no more than has been saved before its end."""
        program, rate = self.program, self._rate(link.out_rate)
        (inside, early), (wall, stall) = saved, times
        beside, still = (int(one) for one in program.add(2))
        last = [] if queue is None else [(queue, -1.0)]
        program.row(-np.inf, 0.0, (beside, 1.0), *last, *self._bytes(self.moved[place], early, -1.0))
        self._fit(link, rate, beside, wall)
        program.row(-np.inf, 0.0, (still, 1.0), (stall, -rate))
        sent = [(beside, -1.0), (still, -1.0)]
        return self._chain(queue, [*self._bytes(self.moved[place], inside), *sent])

    def _fit(self, link: Link, rate: float, beside: int, wall: int) -> None:
        """Bytes beside compute: within the stretch's time, which they stretch themselves."""
        self.program.row(-np.inf, 0.0, (beside, 1.0), (wall, -rate))
        if link.slowdown:
            least = self.program.lower[wall]
            self.program.row(least, np.inf, (wall, 1.0), (beside, -link.slowdown / rate))

    def backward(self) -> None:
        program, menu = self.program, self.menu
        moments = _ends(menu.first_us[self.alive])
        none: list[int | None] = [None] * len(self.links)
        arrived, due, ahead, gone = list(none), list(none), list(none), list(none)
        served = [int(one) for one in program.add(len(self.links))]
        for queue, source in zip(self.queues, served, strict=True):
            program.row(-np.inf, 0.0, (source, 1.0), (queue, -1.0))
        remakes = program.add(len(moments))
        program.row(0.0, 0.0, (self.remake, -1.0), (remakes, 1.0))
        read = _between(self.alive, menu.first_us, moments)
        may_be_read = _between(self.alive, _soonest(menu), [np.nextafter(us, -np.inf) for us in moments])
        released = _between(self.alive, menu.last_us, moments)
        before_us = menu.turn_us
        for turn, at_us in enumerate(moments):
            wall, stall = self._stretch(max(0.0, at_us - before_us))
            window: list[tuple[object, object]] = []
            for place, link in enumerate(self.links):
                moved, rate = self.moved[place], self._rate(link.in_rate)
                beside, still = (int(one) for one in program.add(2))
                self._fit(link, rate, beside, wall)
                program.row(-np.inf, 0.0, (still, 1.0), (stall, -rate), (remakes[turn], -rate))
                ahead[place] = self._chain(ahead[place], self._bytes(moved, may_be_read[turn]))
                window += [(beside, 1.0), (ahead[place], -1.0)]
                window += [] if arrived[place] is None else [(arrived[place], 1.0)]
                arrived[place] = self._chain(arrived[place], [(beside, 1.0), (still, 1.0)])
                due[place] = self._chain(due[place], self._bytes(moved, read[turn]))
                gone[place] = self._chain(gone[place], self._bytes(moved, released[turn]))
                program.row(0.0, np.inf, (arrived[place], 1.0), (served[place], 1.0), (due[place], -1.0))
            if window:
                program.row(-np.inf, self.window, *window)
            self._hold(at_us, [*((one, 1.0) for one in arrived), *((one, -1.0) for one in gone)])
            before_us = max(before_us, at_us)
        self._stretch(max(0.0, menu.trace.forward_us + menu.trace.backward_us - before_us))

    def _hold(self, at_us: float, brought: list[tuple[object, object]]) -> None:
        """At a moment of backward the device holds what is kept, what was brought back, and what was made again."""
        menu, alive = self.menu, self.alive
        live = alive[menu.last_us[alive] > at_us]
        made = live[menu.first_us[live] <= at_us]
        terms = [*brought, *self._bytes(self.kept, live), *self._bytes(self.own, made)]
        for index in made.tolist():
            terms += [(share, self.size[index]) for share in self.made.get(index, ())]
        if terms:
            self.program.row(-np.inf, self.device, *terms)

    def shares(self, limit_s: float) -> Shares | None:
        solved = self.program.solve(limit_s)
        if solved is None:
            return None
        cost, x = solved
        count = len(self.menu.bytes)
        by_name = dict(zip(self.names, self.moved, strict=True))

        def of(columns: np.ndarray | None) -> np.ndarray:
            return np.zeros(count) if columns is None else np.where(columns >= 0, x[columns], 0.0)

        rows = np.zeros(count)
        for spans, shares in self.makers[: self.segment_count]:
            rows[spans] += x[shares]
        bound_us = cost * self.us_unit * (1 - _TOLERANCE)
        return Shares(bound_us, of(by_name.get("host")), of(by_name.get("file")), of(self.own), rows, of(self.kept))


def _ends(moments: np.ndarray) -> list[float]:
    """The ends of the stretches between some moments, the last of them included."""
    distinct = np.unique(moments)
    places = np.unique(np.linspace(0, len(distinct) - 1, min(len(distinct), _STRETCHES)).astype(int))
    return distinct[places].tolist()


def _between(spans: np.ndarray, us: np.ndarray, ends: list[float]) -> list[np.ndarray]:
    """The spans whose time is up to each end, and past the one before."""
    order = spans[np.argsort(us[spans], kind="stable")]
    places = np.searchsorted(us[order], ends, side="right")
    return [order[begin:end] for begin, end in zip([0, *places[:-1]], places, strict=True)]


def _soonest(menu: Menu) -> np.ndarray:
    """When each span may be read at the soonest, if others are made again from it."""
    soonest, spans = menu.first_us.copy(), menu.trace.spans
    groups = [(members, menu.segments[id_].inputs, menu.segments[id_].first_use_us)
              for id_, members in menu.divisible.items() if members]  # fmt: skip
    if menu.may_rerun:
        groups += [
            (list(layer.inner), layer.inputs, np.inf) for layer in layer_spans(menu.trace).values() if layer.inner
        ]
    before = None
    while before is None or (soonest < before).any():
        before = soonest.copy()
        for index in range(len(spans) - 1, -1, -1):
            if menu.own_price[index] < np.inf:
                wanted = list(spans[index].remake_inputs)
                soonest[wanted] = np.minimum(soonest[wanted], soonest[index])
        for members, inputs, first_us in groups:
            soonest[members] = first_us = min(first_us, float(soonest[members].min()))
            soonest[list(inputs)] = np.minimum(soonest[list(inputs)], first_us)
    return soonest
