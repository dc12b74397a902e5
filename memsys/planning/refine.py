"""A solved plan made better by HiGHS: the relaxation's shares, rounded to whole choices that the schedule judges.

Its optimum is a bound too, and mostly a higher one than that which needs no solver.
"""

from __future__ import annotations

import math

import numpy as np

from memsys.planning.menu import Menu
from memsys.planning.relaxed import Shares, relax
from memsys.planning.search import Search, mend
from memsys.planning.swap_plan import Choice, SwapPlan
from memsys.planning.work import moved_row_count

_LIMIT_S = 1.5
_SLACK = (1.0, 0.97, 0.93, 0.85, 0.75)  # of what the relaxation keeps
_WORK = 40_000  # spans, times plans that are tried
_NOTHING = 1e-6


def refine(search: Search, menu: Menu) -> float:
    """Tries plans after the relaxation, and returns its bound (0 where there is none). Raises UnsupportedError where
    HiGHS is missing."""
    shares = relax(menu, search.stepper.hardware, search.stepper.budgets, _LIMIT_S)
    if shares is None:
        return 0.0
    search.bound_us = max(search.bound_us, shares.bound_us)
    search.allow(min(40, max(8, _WORK // max(1, len(menu.bytes)))))
    for slack in _SLACK:
        for threshold in (0.5, 0.1):
            if not search.is_over:
                search.try_plan(_rounded(menu, shares, slack, threshold))
    mend(search, menu, 4)
    return shares.bound_us


def _rounded(menu: Menu, shares: Shares, slack: float, threshold: float) -> SwapPlan:
    """Each kind of span owes its shares in the order of saving, and pays them in whole spans."""
    count = len(menu.bytes)
    choices = [Choice.KEEP] * count
    owed: dict[tuple[object, ...], np.ndarray] = {}
    is_dividable = {index for members in menu.dividable.values() for index in members}
    for index in np.argsort(menu.saved_us, kind="stable").tolist():
        span = menu.trace.spans[index]
        whole = np.array([slack * shares.kept[index], shares.host[index], shares.file[index], shares.own[index]])
        rows = float(shares.rows[index]) if index in is_dividable else 0.0
        if rows > _NOTHING and whole[0] < threshold:
            choices[index] = Choice.ROWS
            continue
        if rows > _NOTHING:
            whole[0] += rows
        if whole.sum() < _NOTHING:
            continue
        debt = owed.setdefault((span.producer, span.shape, span.segment < 0), np.zeros(4))
        debt += whole / whole.sum() * menu.bytes[index]
        place = int(np.argmax(np.where(whole > _NOTHING, debt, -math.inf)))
        debt[place] -= menu.bytes[index]
        choices[index] = (Choice.KEEP, Choice.HOST, Choice.FILE, Choice.RECOMPUTE)[place]
    host, file = float(shares.host.sum()), float(shares.file.sum())
    row_tier = Choice.HOST if host > file else Choice.FILE
    return SwapPlan(tuple(choices), _alphas(menu, shares, choices), row_tier)


def _alphas(menu: Menu, shares: Shares, choices: list[Choice]) -> dict[int, float]:
    """Of the rows of each segment, the share that is not made again in the relaxation."""
    alphas = {}
    for id_, members in menu.dividable.items():
        divided = [index for index in members if choices[index] is Choice.ROWS]
        if divided:
            bytes_ = menu.bytes[divided]
            made = float((shares.rows[divided] * bytes_).sum() / bytes_.sum())
            row_count = menu.segments[id_].row_count
            alphas[id_] = moved_row_count(max(0.0, 1.0 - made - 0.5 / row_count), row_count) / row_count
    return alphas
