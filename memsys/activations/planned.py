"""Carries out plans: each saved span gets its plan's choice, as long as the forward is the one that was planned for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE, ROWS, Decision, SavedTensor
from memsys.activations.policy import Policy
from memsys.errors import InputError
from memsys.planning.plan import Plan
from memsys.planning.swap_plan import Choice

_PLACES = {Choice.HOST: HOST, Choice.FILE: FILE}


class PlannedForward:
    """The policy of one forward. Of the plans at hand it follows one whose spans are, in their order, those saved so
    far; where there is none (any more) the rest of the forward follows `otherwise`."""

    def __init__(self, plans: Sequence[Plan], otherwise: Policy, away: Decision, kept_bytes: Callable[[], int]) -> None:
        """plans: the likeliest first. away: where what can't be done as planned goes. kept_bytes: of all forwards."""
        self._plans = list(plans)
        self._otherwise = otherwise
        self._away = away
        self._kept_bytes = kept_bytes
        self._seen_count = 0

    @property
    def plan(self) -> Plan | None:
        """The plan that the whole forward followed; None if it departed from all, or ended early."""
        plan = self._plans[0] if self._plans else None
        return plan if plan is not None and len(plan.trace.spans) == self._seen_count else None

    def __call__(self, saved: SavedTensor) -> Decision:
        self._seen_count = saved.index + 1
        plan = self._next_plan(saved)
        return self._otherwise(saved) if plan is None else self._choice(plan, saved)

    def _next_plan(self, saved: SavedTensor) -> Plan | None:
        if not self._plans or _has(self._plans[0], saved):
            return self._plans[0] if self._plans else None
        begun = _beginning(self._plans[0], saved.index)
        self._plans = [plan for plan in self._plans if _has(plan, saved) and _beginning(plan, saved.index) == begun]
        return self._plans[0] if self._plans else None

    def _choice(self, plan: Plan, saved: SavedTensor) -> Decision:
        choice = plan.swap.choices[saved.index]
        if choice is Choice.KEEP:
            # Other forwards may have kept something that this plan does not know of.
            has_room = self._kept_bytes() + saved.bytes <= plan.bytes_of_kept
            return KEEP if has_room or plan.budgets.device_bytes is None else self._away
        if choice is Choice.RECOMPUTE:
            return RECOMPUTE(saved.segment) if saved.segment is not None else self._away
        if choice is Choice.ROWS:
            return self._rows(plan, saved)
        return _PLACES[choice]

    def _rows(self, plan: Plan, saved: SavedTensor) -> Decision:
        alpha = plan.swap.alphas.get(plan.trace.spans[saved.index].segment)
        if saved.row_segment is None or alpha is None:
            return self._away
        return ROWS(alpha, saved.row_segment, _PLACES[plan.swap.row_tier].place)


def given_plan(plan: object, policy: object) -> Plan | None:
    """The plan behind offload's `plan`: None, a Plan, or the path of one. Raises InputError for anything else."""
    if plan is None:
        return None
    if policy != "auto":
        raise InputError(f"plan= was given together with policy={policy!r}; a plan is followed by policy='auto'")
    if isinstance(plan, (str, os.PathLike)):
        return Plan.load(plan)
    if not isinstance(plan, Plan):
        raise InputError(f"plan: wanted what memsys.plan returned or the path it was saved to, found "
                         f"{type(plan).__name__}; leave plan out and use policy='auto'")  # fmt: skip
    return plan


def _has(plan: Plan, saved: SavedTensor) -> bool:
    """Whether the plan expects this very span."""
    spans = plan.trace.spans
    if saved.index >= len(spans):
        return False
    span = spans[saved.index]
    return span.bytes == saved.bytes and span.producer == saved.producer


def _beginning(plan: Plan, count: int) -> tuple[int, ...]:
    return plan.trace.signature[:count]
