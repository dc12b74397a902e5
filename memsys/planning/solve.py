"""Finds the plan of a step: what stays, what moves where, and what is made again, so that the step is the fastest that
fits its budgets; with a bound that says how far from the best it can be at most.

After MEMO (SIGMOD'25), whose program has one share for all layers, the link's forward direction and identical layers;
here each span and segment is chosen, both directions, both tiers and every budget count, and the schedule judges.
"""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import replace

from memsys.errors import BudgetError, InputError
from memsys.planning.bound import lower_bound
from memsys.planning.candidates import Builder, Knobs
from memsys.planning.coarse import coarsen
from memsys.planning.fixed import fixed_plan
from memsys.planning.menu import Menu
from memsys.planning.polish import polish
from memsys.planning.program import import_highs
from memsys.planning.refine import refine
from memsys.planning.schedule import Overrun, Stepper
from memsys.planning.search import Search, mend, search_knobs
from memsys.planning.swap_plan import Budgets, Hardware, SwapPlan
from memsys.planning.trace import StepTrace

_SHORT = 768  # spans that a search goes through itself
_BLOCKS = 96  # stretches of a longer trace, in the short one that is searched instead
_TRIES = (64, 400)
_HIGHS_SPANS = 4096
_GAP = 0.005  # of the bound, from which on a refinement is worth its time
_WORK = 30_000  # spans, times plans, stepped at full length


def solve(trace: StepTrace, hardware: Hardware, budgets: Budgets, *, exact: bool | str = False,
          may_rerun: bool = False) -> SwapPlan:  # fmt: skip
    """The plan for a step, with what it should cost and a bound that no plan goes below.

    exact: True refines it by HiGHS, an extra (`pip install "memsys[plan]"`), where the trace is short enough for that
    to end in two seconds; "auto" does so where HiGHS is there and the gap is worth it; `solver` says who was best.
    may_rerun: plans may run whole layers again from their input, as a checkpoint does. Raises BudgetError where no
    plan was found that fits, InputError for a trace that makes no sense.
    """
    if exact not in (True, False, "auto"):
        raise InputError(f"exact: wanted True, False or 'auto', found {exact!r}; use exact='auto'")
    if exact is True:
        import_highs()
    begin = time.perf_counter()
    stepper = Stepper(trace, hardware, budgets)
    menu = Menu(trace, may_rerun)
    if budgets.device_bytes is None or menu.peak_bytes <= budgets.device_bytes:
        keep_plan = fixed_plan(trace, "keep")
        keep = stepper.step(keep_plan)
        return replace(
            keep_plan, predicted=keep.predicted, bound_us=keep.predicted.step_us, solver="greedy",
            declined=_reason(keep.predicted.peak_device_bytes, budgets), solve_us=(time.perf_counter() - begin) * 1e6,
            budgets=budgets, hardware=hardware, signature=trace.signature,
        )  # fmt: skip
    bound_us, made_bytes = lower_bound(menu, hardware, budgets)
    if math.isinf(bound_us):
        raise _no_room(trace, hardware, budgets, _least_wanted(menu, hardware, budgets))
    search = _greedy(stepper, menu, bound_us, made_bytes, may_rerun)
    solver = "greedy"
    if _is_worth_refining(exact, search, len(trace.spans)):
        best, bound_us = search.best, max(bound_us, refine(search, menu))
        solver = "greedy" if search.best is best else "highs"
    if search.best is None or search.found is None:
        everything = Overrun("device", menu.peak_bytes, budgets.device_bytes)
        raise _no_room(trace, hardware, budgets, search.nearest or (everything,))
    return replace(
        search.best, predicted=search.found.predicted, bound_us=bound_us, solver=solver,
        solve_us=(time.perf_counter() - begin) * 1e6, budgets=budgets, hardware=hardware, signature=trace.signature,
    )  # fmt: skip


def _is_worth_refining(exact: bool | str, search: Search, count: int) -> bool:
    if not exact or count > _HIGHS_SPANS or (exact is True and search.is_optimal):
        return False
    if exact is True:
        return True
    gap_us = math.inf if search.found is None else search.found.predicted.step_us - search.bound_us
    return gap_us > _GAP * search.bound_us and importlib.util.find_spec("highspy") is not None


def _greedy(stepper: Stepper, menu: Menu, bound_us: float, made_bytes: float, may_rerun: bool) -> Search:
    count = len(menu.trace.spans)
    if count <= _SHORT:
        search = Search(stepper, bound_us, _tries(count))
        _try_fixed(search, may_rerun)
        _find(search, menu, made_bytes)
        mend(search, menu, 6)
        polish(search, menu)
        return search
    search = Search(stepper, bound_us, max(1, _WORK // count))
    _find_short(search, menu, made_bytes)
    if search.best is None or count * 4 <= _WORK:
        _try_fixed(search, may_rerun)
        mend(search, menu, 2)
    if search.best is None:  # a stack that is not alike throughout
        search.allow(_TRIES[0])
        _find(search, menu, made_bytes)
    return search


def _find_short(search: Search, menu: Menu, made_bytes: float) -> None:
    """Searches a short trace like the long one, whose window is as much larger as its spans are, and tries what was
    found there on the long one: the same knobs, and the same choices."""
    stepper = search.stepper
    coarse = coarsen(menu.trace, _BLOCKS)
    short_menu = Menu(coarse.trace)
    scale = float(short_menu.bytes.max()) / max(1.0, float(menu.bytes.max()))
    hardware = replace(stepper.hardware, window_bytes=int(stepper.hardware.window_bytes * scale))
    short = Search(Stepper(coarse.trace, hardware, stepper.budgets), search.bound_us, _tries(len(coarse.trace.spans)))
    _try_fixed(short, False)
    knobs = _find(short, short_menu, made_bytes)
    if knobs is not None:
        builder = Builder(menu, stepper.hardware, stepper.budgets)
        found = search.try_plan(builder.build(knobs))
        for share in (0.97, 1.03, 1.06, 0.9):
            if (search.best is None or not search.is_over) and (share > 1) is (found is not None and found.fits):
                search.try_plan(builder.build(replace(knobs, keep_bytes=share * knobs.keep_bytes)))
    if short.best is not None and (search.best is None or not search.is_over):
        search.try_plan(coarse.spread(short.best))


def _tries(count: int) -> int:
    """How many plans of so many spans are tried: about half a second's worth."""
    return min(_TRIES[1], max(_TRIES[0], _WORK // max(1, count)))


def _try_fixed(search: Search, may_rerun: bool) -> None:
    stepper = search.stepper
    for kind in ("all", "inputs", "checkpoint") if may_rerun else ("all", "inputs"):
        search.try_plan(fixed_plan(stepper.columns.trace, kind, stepper.hardware, stepper.budgets))


def _find(search: Search, menu: Menu, made_bytes: float) -> Knobs | None:
    builder = Builder(menu, search.stepper.hardware, search.stepper.budgets)
    made = min(1.0, made_bytes / builder.makeable_bytes) if builder.makeable_bytes else 0.0
    return search_knobs(search, builder, made)


def _reason(peak_bytes: int, budgets: Budgets) -> str:
    if budgets.device_bytes is None:
        return f"there is no device budget, and moving any of the {peak_bytes} bytes would gain nothing"
    return (f"all {peak_bytes} bytes fit the device budget of {budgets.device_bytes} bytes, and moving any of them "
            "would gain nothing")  # fmt: skip


def _least_wanted(menu: Menu, hardware: Hardware, budgets: Budgets) -> tuple[Overrun, ...]:
    """What the last tier would have to hold if the others were full and all was made again that can be."""
    device_bytes = budgets.device_bytes or 0
    alive = menu.saved_us <= menu.turn_us
    rest = int(menu.bytes[alive & (menu.price == math.inf)].sum()) - device_bytes
    tiers = [("host", hardware.host, budgets.host_bytes), ("file", hardware.file, budgets.file_bytes)]
    limits = {tier: limit for tier, link, limit in tiers if link is not None and limit is not None}
    if not limits:
        return (Overrun("device", rest + device_bytes, device_bytes),)
    last = list(limits)[-1]
    return (Overrun(last, rest - sum(limits.values()) + limits[last], limits[last]),)


def _no_room(trace: StepTrace, hardware: Hardware, budgets: Budgets, overruns: tuple[Overrun, ...]) -> BudgetError:
    worst = max(overruns, key=lambda overrun: overrun.wanted_bytes / max(1, overrun.budget_bytes))
    links = [name for name, link in (("host", hardware.host), ("file", hardware.file)) if link is not None]
    remedy = {
        "device": f"give the device {worst.wanted_bytes} bytes, or shorten the sequence",
        "host": "give the host more, or let what it can't hold go to a file",
        "file": "free space in the spill folder, or name another",
    }[worst.tier]
    return BudgetError(
        f"no plan fits: the step saves {trace.saved_bytes} bytes, and the least plan that was found wants "
        f"{worst.wanted_bytes} bytes of {worst.tier} memory, where the budget is {worst.budget_bytes} bytes (beside "
        f"a device budget of {budgets.device_bytes} bytes; links: {', '.join(links) or 'none'}); {remedy}"
    )
