"""The policies that look at no numbers, as plans: what a solved plan is compared with, under the same model."""

from __future__ import annotations

from collections.abc import Callable

from memsys.errors import InputError
from memsys.planning.layers import layer_spans
from memsys.planning.swap_plan import Budgets, Choice, Hardware, SwapPlan
from memsys.planning.trace import SpanRecord, StepTrace

KINDS = ("keep", "all", "inputs", "checkpoint")


def fixed_plan(trace: StepTrace, kind: str, hardware: Hardware | None = None,
               budgets: Budgets | None = None) -> SwapPlan:  # fmt: skip
    """The plan that keeps everything ("keep"), moves everything ("all"), moves layer inputs and attention outputs
    ("inputs"), or keeps layer inputs and runs each layer again ("checkpoint").

    What moves goes to the host where the hardware has that link and the host budget has room, else to the file, as
    the engine does. Raises InputError for another kind.
    """
    if kind not in KINDS:
        raise InputError(f"kind: wanted one of {', '.join(KINDS)}, found {kind!r}; use fixed_plan(trace, 'all')")
    if kind == "checkpoint":
        return _checkpoint(trace)
    moves: dict[str, Callable[[SpanRecord], bool]] = {
        "keep": lambda span: False,
        "all": lambda span: True,
        "inputs": lambda span: span.is_layer_input or span.is_attention_output,
    }
    choices = [Choice.KEEP] * len(trace.spans)
    host_link = hardware.host if hardware is not None else None
    host_limit = budgets.host_bytes if budgets is not None else None
    host_left = 0 if host_link is None else float("inf") if host_limit is None else host_limit
    for index, span in enumerate(trace.spans):
        if moves[kind](span):
            goes_to_host = host_link is not None and (span.bytes <= host_left or hardware.file is None)
            choices[index] = Choice.HOST if goes_to_host else Choice.FILE
            host_left -= span.bytes if goes_to_host else 0
    return SwapPlan(tuple(choices), solver=kind)


def _checkpoint(trace: StepTrace) -> SwapPlan:
    layers = {layer: spans for layer, spans in layer_spans(trace).items() if spans.inputs and spans.inner}
    choices = [Choice.KEEP] * len(trace.spans)
    for spans in layers.values():
        for index in spans.inner:
            choices[index] = Choice.RECOMPUTE
    return SwapPlan(tuple(choices), reruns=tuple(sorted(layers)), solver="checkpoint")
