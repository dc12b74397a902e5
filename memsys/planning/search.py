"""A bounded search over plans: the schedule judges each, the fastest that fits stays.

First the few numbers of `candidates` one after another, from two starts; then single spans and segments, where the
schedule shows that compute stalls. The same trace gives the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memsys.errors import InputError
from memsys.planning.candidates import Builder, Knobs
from memsys.planning.menu import Menu
from memsys.planning.schedule import Overrun, Schedule, Stepper
from memsys.planning.swap_plan import Choice, SwapPlan
from memsys.planning.work import moved_row_count

_KEEP_GRID = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.25, 0.0)
_MADE_GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_GOOD_ENOUGH = 1.0005  # of the bound


class Search:
    """The best plan so far, and how many more may be tried."""

    def __init__(self, stepper: Stepper, bound_us: float, limit_count: int) -> None:
        self.stepper = stepper
        self.bound_us = bound_us
        self.best: SwapPlan | None = None
        self.found: Schedule | None = None  # of the best plan
        self.nearest: tuple[Overrun, ...] = ()  # of the plan that came nearest to fitting
        self._limit_count = limit_count
        self._seen: dict[int, Schedule | None] = {}

    @property
    def is_over(self) -> bool:
        return self.is_optimal or len(self._seen) >= self._limit_count

    @property
    def is_optimal(self) -> bool:
        """Whether the best is as good as the bound."""
        return self.found is not None and self.found.predicted.step_us <= self.bound_us * _GOOD_ENOUGH

    def allow(self, count: int) -> None:
        """Lets so many more plans be tried."""
        self._limit_count = len(self._seen) + count

    def try_plan(self, plan: SwapPlan) -> Schedule | None:
        """Steps the plan, unless it was tried before or the hardware has no link for it."""
        hardware = self.stepper.hardware
        if (hardware.file is None and (Choice.FILE in plan.choices or _divides(plan, Choice.FILE))) or (
            hardware.host is None and (Choice.HOST in plan.choices or _divides(plan, Choice.HOST))
        ):
            return None
        key = hash((plan.choices, tuple(sorted(plan.alphas.items())), plan.row_tier, plan.reruns))
        if key not in self._seen:
            try:
                found = self.stepper.step(plan)
            except InputError:
                found = None  # an input of something made again is not there
            self._seen[key] = found
            if found is not None:
                self._judge(plan, found)
        return self._seen[key]

    def _judge(self, plan: SwapPlan, found: Schedule) -> None:
        if not found.fits:
            if not self.nearest or _excess(found.overruns) < _excess(self.nearest):
                self.nearest = found.overruns
            return
        if self.found is None or _rank(found) < _rank(self.found):
            self.best, self.found = plan, found


def _divides(plan: SwapPlan, tier: Choice) -> bool:
    return plan.row_tier is tier and Choice.ROWS in plan.choices


def _excess(overruns: Iterable[Overrun]) -> float:
    return max(overrun.wanted_bytes / max(1, overrun.budget_bytes) for overrun in overruns)


def _rank(found: Schedule) -> tuple[float, int]:
    return found.predicted.step_us, found.predicted.out_bytes


def search_knobs(search: Search, builder: Builder, start_made: float) -> Knobs | None:
    """Looks for the best knobs, one at a time; returns them, or None if none gave a plan that fits."""
    device_bytes = builder.budgets.device_bytes or 0
    best: tuple[tuple[float, float], Knobs] | None = None

    def consider(knobs: Knobs) -> None:
        nonlocal best
        if search.is_over:
            return
        found = search.try_plan(builder.build(knobs))
        if found is None:
            return
        rank = (0.0, found.predicted.step_us) if found.fits else (_excess(found.overruns), 0.0)
        if best is None or rank < best[0]:
            best = (rank, knobs)

    for made in dict.fromkeys((start_made, 0.0)):
        for share in _KEEP_GRID:
            consider(Knobs(share * device_bytes, made_share=made))
    for width in (1.0, 0.5, 0.25):
        if best is None:
            return None
        for change in _changes(builder, best[1], width):
            consider(change)
        for made in _made_near(best[1].made_share, width):
            consider(replace(best[1], made_share=made))
        for share in (-0.06, -0.03, 0.03, 0.06):
            keep_bytes = best[1].keep_bytes + share * width * device_bytes
            consider(replace(best[1], keep_bytes=min(max(keep_bytes, 0.0), device_bytes)))
    return best[1] if best is not None and best[0][0] == 0.0 else None


def _made_near(made: float, width: float) -> list[float]:
    if width == 1.0:
        return list(_MADE_GRID)
    return [min(1.0, max(0.0, made + step * width * 0.2)) for step in (-1.0, -0.5, 0.5, 1.0)]


def _changes(builder: Builder, knobs: Knobs, width: float) -> list[Knobs]:
    """The same plan with another order, spread or tier."""
    changes = [replace(knobs, lateness=lateness) for lateness in (0.0, 0.5, 0.8, 1.0)]
    other_way = replace(knobs, keeps_first=not knobs.keeps_first)
    changes += [other_way, replace(other_way, lateness=0.0)]
    hardware = builder.hardware
    if hardware.host is not None and hardware.file is not None:
        even = hardware.file.out_rate / (hardware.file.out_rate + hardware.host.out_rate)
        changes += [replace(knobs, file_share=share) for share in (0.0, even * 0.5, even)]
    return changes if width > 0.25 else []


def mend(search: Search, menu: Menu, rounds: int) -> None:
    """Where compute stalls, lets a segment move fewer rows, and one that does not stall more; keeps the span that
    stalls longest instead of the one kept longest without need."""
    for step in range(rounds):
        if search.is_over or search.best is None or search.found is None:
            return
        before_us = search.found.predicted.step_us
        plan, found = search.best, search.found
        stalls: dict[int, float] = {}
        for lane, begin_us, end_us, _, index in found.events:
            if lane == "stall":
                stalls[index] = stalls.get(index, 0.0) + end_us - begin_us
        for part in (1.0, 0.4):
            search.try_plan(_shift_rows(plan, menu, search.stepper, stalls, part))
        for count in (1, 4):
            search.try_plan(_swap_kept(plan, menu, stalls, count))
        if search.found.predicted.step_us > before_us * (1 - 1e-5) and step > 0:
            return


def _shift_rows(plan: SwapPlan, menu: Menu, stepper: Stepper, stalls: dict[int, float], part: float) -> SwapPlan:
    """Segments whose layer stalls move less, by what their tier carries in that time; the others a few rows more."""
    link = stepper.hardware.host if plan.row_tier is Choice.HOST else stepper.hardware.file
    by_layer: dict[int, float] = {}
    for index, us in stalls.items():
        layer = menu.trace.spans[index].layer
        by_layer[layer] = by_layer.get(layer, 0.0) + us
    alphas = dict(plan.alphas)
    for id_, alpha in plan.alphas.items():
        segment = menu.segments[id_]
        members = [index for index in menu.dividable[id_] if plan.choices[index] is Choice.ROWS]
        bytes_ = float(menu.bytes[members].sum())
        if link is None or bytes_ == 0:
            continue
        us = by_layer.get(segment.layer, 0.0)
        rate = min(link.out_rate, link.in_rate)
        by = -us * rate / 1e6 / bytes_ if us else 1.0 / segment.row_count + 0.02
        alpha = min(1.0, max(0.0, alpha + part * by))
        alphas[id_] = moved_row_count(alpha, segment.row_count) / segment.row_count  # whole rows
    return replace(plan, alphas=alphas)


def _swap_kept(plan: SwapPlan, menu: Menu, stalls: dict[int, float], count: int) -> SwapPlan:
    """Keeps up to `count` moved spans that stall the longest; lets kept ones of as many bytes go, the first saved."""
    choices = list(plan.choices)
    moved = [index for index in stalls if choices[index] in (Choice.HOST, Choice.FILE)]
    moved.sort(key=lambda index: (-stalls[index], index))
    needed = 0
    for index in moved[:count]:
        tier, choices[index] = choices[index], Choice.KEEP
        needed += int(menu.bytes[index])
        for other, choice in enumerate(plan.choices):
            if needed <= 0:
                break
            if choice is Choice.KEEP and choices[other] is Choice.KEEP and other not in stalls:
                choices[other] = tier
                needed -= int(menu.bytes[other])
    return replace(plan, choices=tuple(choices))
