"""Changes of one span or one segment at a time, for as long as they help: what a search over few numbers can't see.

For short traces this comes near trying everything; for long ones the limit of tries ends it early.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from memsys.planning.menu import Menu
from memsys.planning.search import Search
from memsys.planning.swap_plan import Choice, Hardware, SwapPlan

_SHARES = (0.0, 0.25, 0.5, 0.75)
_PAIRS = 400  # of spans that change places, in a pass
_LEAPS = 1000


def polish(search: Search, menu: Menu) -> None:
    """Improves the best plan until no single change does, then by a few changes at once, until no more may be tried.
    The order of changes is shuffled, always in the same way."""
    shuffle = random.Random(0)
    while search.best is not None and not search.is_over:
        start = search.best
        changes = list(_changes(start, menu, search.stepper.hardware, shuffle))
        shuffle.shuffle(changes)
        for change in changes:
            if search.is_over:
                return
            search.try_plan(change)
            if search.best is not start:
                break
        else:
            _leap(search, menu, shuffle)
            if search.best is start:
                return


def _leap(search: Search, menu: Menu, shuffle: random.Random) -> None:
    """Out of a plan that no single change betters: several at once, until that helps."""
    start, hardware, spans = search.best, search.stepper.hardware, range(len(menu.bytes))
    for _ in range(_LEAPS):
        if search.is_over or search.best is not start:
            return
        some = shuffle.sample(spans, min(len(spans), shuffle.choice((2, 3, 4))))
        change = _with_choice(start, menu, {index: shuffle.choice(_options(menu, hardware, index)) for index in some})
        if change.alphas and shuffle.random() < 0.5:
            change = replace(change, alphas={**change.alphas, shuffle.choice(sorted(change.alphas)): 0.0})
        search.try_plan(change)


def _changes(plan: SwapPlan, menu: Menu, hardware: Hardware, shuffle: random.Random) -> Iterator[SwapPlan]:
    for index in range(len(plan.choices)):
        for choice in _options(menu, hardware, index):
            if choice is not plan.choices[index]:
                yield _with_choice(plan, menu, {index: choice})
    yield from _pairs(plan, menu, shuffle)
    for id_, members in menu.dividable.items():
        segment = menu.segments[id_]
        alpha = plan.alphas.get(id_, 1.0)
        step = 1.0 / segment.row_count
        for share in dict.fromkeys((*_SHARES, max(0.0, alpha - step), min(1.0, alpha + step))):
            if share != alpha:
                yield replace(plan, alphas={**plan.alphas, id_: share})
            yield _divided(plan, menu, id_, members, share, spare_kept=True)
            yield _divided(plan, menu, id_, members, share, spare_kept=False)


def _pairs(plan: SwapPlan, menu: Menu, shuffle: random.Random) -> Iterator[SwapPlan]:
    """A kept span and one that is not change places."""
    kept = [index for index, choice in enumerate(plan.choices) if choice is Choice.KEEP]
    other = [index for index, choice in enumerate(plan.choices) if choice is not Choice.KEEP]
    pairs = [(kept[place % len(kept)], other[place // len(kept)]) for place in _some(shuffle, len(kept) * len(other))]
    for stays, goes in pairs:
        choice = plan.choices[goes]
        if choice in (Choice.HOST, Choice.FILE) or choice in _options(menu, None, stays):
            yield _with_choice(plan, menu, {stays: choice, goes: Choice.KEEP})


def _some(shuffle: random.Random, count: int) -> list[int]:
    return list(range(count)) if count <= _PAIRS else shuffle.sample(range(count), _PAIRS)


def _options(menu: Menu, hardware: Hardware | None, index: int) -> list[Choice]:
    options = [Choice.KEEP]
    if hardware is not None:
        options += [Choice.HOST] * (hardware.host is not None) + [Choice.FILE] * (hardware.file is not None)
    if index not in menu.row_inputs or not menu.dividable:
        options += [Choice.RECOMPUTE] * bool(menu.own_price[index] < float("inf"))
    segment = menu.trace.spans[index].segment
    return options + [Choice.ROWS] * (index in menu.dividable.get(segment, ()))


def _with_choice(plan: SwapPlan, menu: Menu, changed: dict[int, Choice]) -> SwapPlan:
    choices, alphas = list(plan.choices), dict(plan.alphas)
    for index, choice in changed.items():
        choices[index] = choice
        if choice is Choice.ROWS:
            alphas.setdefault(menu.trace.spans[index].segment, 0.0)
    return replace(plan, choices=tuple(choices), alphas=alphas)


def _divided(plan: SwapPlan, menu: Menu, id_: int, members: list[int], share: float, spare_kept: bool) -> SwapPlan:
    spared = [index for index in members if spare_kept and plan.choices[index] is Choice.KEEP]
    changed = _with_choice(plan, menu, {index: Choice.ROWS for index in members if index not in spared})
    return replace(changed, alphas={**changed.alphas, id_: share})
