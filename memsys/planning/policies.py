"""Policies of a simulation by name, as plans: the planner's, those that look at no numbers, and MEMO's own."""

from __future__ import annotations

from dataclasses import replace

from memsys.errors import InputError
from memsys.planning.fixed import fixed_plan
from memsys.planning.memo import KEPT_LAYERS
from memsys.planning.swap_plan import Budgets, Choice, Hardware, SwapPlan
from memsys.planning.trace import SpanRecord, StepTrace

NAMES = {
    "plan": "what memsys's planner chooses",
    "none": "everything stays",
    "all": "everything moves",
    "inputs": "layer inputs and attention outputs move, the rest stays",
    "checkpoint": "layer inputs stay, each layer runs its forward again",
    "checkpoint+host": "layer inputs move, each layer runs its forward again",
    "tokenwise": "MEMO: layer inputs, attention outputs and a share of all other rows move, the other rows run again",
}


def policy_plan(
    policy: str, trace: StepTrace, hardware: Hardware, budgets: Budgets, alpha: float = 1.0
) -> SwapPlan:  # fmt: skip
    """The plan of a policy. alpha: the share of rows that "tokenwise" swaps.

    Raises InputError for a name that is none.
    """
    if policy == "plan":
        from memsys.planning.solve import solve

        return solve(trace, hardware, budgets)
    if policy in ("none", "all", "inputs", "checkpoint"):
        return fixed_plan(trace, "keep" if policy == "none" else policy, hardware, budgets)
    if policy == "checkpoint+host":
        # Layer inputs go where "inputs" sends them, what a layer makes is dropped.
        rerun, moved = fixed_plan(trace, "checkpoint"), fixed_plan(trace, "inputs", hardware, budgets)
        choices = (two if span.is_layer_input else one
                   for span, one, two in zip(trace.spans, rerun.choices, moved.choices, strict=True))  # fmt: skip
        return replace(rerun, choices=tuple(choices), solver=policy)
    if policy == "tokenwise":
        return _token_wise(trace, hardware, budgets, alpha)
    raise InputError(f"policy {policy!r}: no such name; known are {', '.join(NAMES)}")


def _token_wise(trace: StepTrace, hardware: Hardware, budgets: Budgets, alpha: float) -> SwapPlan:
    """One alpha for all layers but the last two, which stay."""
    layers = sorted({span.layer for span in trace.spans if span.layer >= 0})
    moving = set(layers[: max(0, len(layers) - KEPT_LAYERS)])
    choices = list(fixed_plan(trace, "inputs", hardware, budgets).choices)
    for span in trace.spans:
        if span.layer not in moving:
            choices[span.index] = Choice.KEEP
        elif not _is_whole(span):
            if span.segment < 0 or not span.row_bytes:
                raise InputError(f"policy 'tokenwise': span {span.index} ({span.producer}) can't be divided by rows; "
                                 "use the policy 'plan'")  # fmt: skip
            choices[span.index] = Choice.ROWS
    alphas = {segment.id: alpha for segment in trace.segments if segment.layer in moving}
    tier = Choice.HOST if hardware.host is not None else Choice.FILE
    return SwapPlan(tuple(choices), alphas, tier, solver="tokenwise")


def _is_whole(span: SpanRecord) -> bool:
    return span.is_layer_input or span.is_attention_output
