"""The trace of a training step that never ran: computed from a model's shape, a load, and a machine's rates.

It has what a recorded one has (spans in the order of packing, segments by layer, op times), so that plans, schedules
and reports can't tell them apart. Bytes and times are one GPU's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memsys.planning.compute import ComputeModel
from memsys.planning.decoder import ATTENTION_OUTPUT, LAYER_INPUT, Operation, Tensor
from memsys.planning.trace import SegmentRecord, SpanRecord, StepTrace

# Mixed precision Adam: parameters and gradients in the model's dtype; master copy and two moments in fp32.
_OPTIMIZER_BYTES = 12


@dataclass
class _Draft:
    """What is known of one layer (or the head, layer -1) after its forward."""

    layer: int
    begin_us: float
    end_us: float = 0.0
    remade_us: float = 0.0  # when its last tensor was saved
    saved_us: dict[str, float] = field(default_factory=dict)
    first_us: dict[str, float] = field(default_factory=dict)
    last_us: dict[str, float] = field(default_factory=dict)


def synthetic_trace(model: ComputeModel, gpus: int | None = None) -> StepTrace:
    """A step under the model's load; `gpus` (default: the tensor-parallel ones) share parameters and optimizer."""
    clock, drafts = 0.0, []
    width, size = model.shape.hidden, model.shape.dtype_bytes
    head = (Tensor("final_input", width, size, "network_add"), Tensor("final_norm", width, size, "final_norm_op"))
    plan = [(index, model.layer.operations, LAYER_INPUT) for index in range(model.shape.layers)]
    plan.append((-1, model.head_operations(), "final_input"))
    for layer, operations, source in plan:
        draft = _Draft(layer, clock, saved_us={source: clock})
        for operation in operations:
            clock += model.forward_us(operation)
            draft.saved_us |= dict.fromkeys(operation.saves, clock)
            draft.remade_us = clock if operation.saves else draft.remade_us
        draft.end_us = clock
        drafts.append(draft)
    forward_us = clock
    for draft, (_, operations, _) in zip(reversed(drafts), reversed(plan), strict=True):
        clock = _run_backward(model, draft, operations, clock)
    spans: list[SpanRecord] = []
    segments = []
    for draft in drafts:
        tensors = head if draft.layer < 0 else model.layer.tensors
        made = _spans_of(model, draft, tensors, len(spans))
        spans += made
        if draft.layer >= 0:
            segments.append(_segment_of(model, draft, made))
    return StepTrace(
        device="simulated",
        forward_us=forward_us,
        backward_us=clock - forward_us,
        spans=tuple(spans),
        segments=tuple(segments),
        transient_peak_bytes=transient_bytes(model),
        resident_bytes=resident_bytes(model, gpus or model.load.parallel),
    )


def _run_backward(model: ComputeModel, draft: _Draft, operations: tuple[Operation, ...], clock: float) -> float:
    """Backward of one layer from `clock` on; notes when each saved tensor is read. Returns its end."""
    for operation in reversed(operations):
        end = clock + model.backward_us(operation)
        for name in operation.reads:
            draft.first_us.setdefault(name, clock)
            draft.last_us[name] = end
        clock = end
    return clock


def _spans_of(model: ComputeModel, draft: _Draft, tensors: tuple[Tensor, ...], first: int) -> list[SpanRecord]:
    """The spans of a layer, `first` being the index of its first one."""
    load, found = model.load, []
    ordered = sorted(
        tensors, key=lambda tensor: draft.saved_us.get(tensor.name, draft.saved_us.get(tensor.producer, 0))
    )
    place = {tensor.name: first + index for index, tensor in enumerate(ordered)}
    producers = {operation.name: operation for operation in (*model.layer.operations, *model.head_operations())}
    for tensor in ordered:
        size = tensor.token_bytes * load.tokens // load.parallel
        in_layer = draft.layer >= 0
        is_whole = tensor.name in (LAYER_INPUT, ATTENTION_OUTPUT)
        can_remake = bool(tensor.made_from) and in_layer
        found.append(SpanRecord(
            index=place[tensor.name],
            bytes=size,
            dtype="float32" if tensor.element_bytes == 4 else "bfloat16",
            shape=(load.batch, load.seq, tensor.width // load.parallel),
            producer=tensor.producer,
            layer=draft.layer,
            saved_us=draft.saved_us[tensor.name],
            first_use_us=draft.first_us[tensor.name],
            last_use_us=draft.last_us[tensor.name],
            is_layer_input=tensor.name == LAYER_INPUT,
            is_attention_output=tensor.name == ATTENTION_OUTPUT,
            remake_us=model.forward_us(producers[tensor.producer]) if can_remake else None,
            remake_inputs=tuple(place[name] for name in tensor.made_from) if can_remake else (),
            segment=draft.layer if in_layer and not is_whole else -1,
            row_bytes=size // load.seq if in_layer and not is_whole else 0,
        ))  # fmt: skip
    return found


def _segment_of(model: ComputeModel, draft: _Draft, spans: list[SpanRecord]) -> SegmentRecord:
    return SegmentRecord(
        id=draft.layer,
        layer=draft.layer,
        row_count=model.load.seq,
        remake_us=model.layer_times().remake_us,
        begin_us=draft.begin_us,
        end_us=draft.remade_us,
        first_use_us=min(span.first_use_us for span in spans if span.segment >= 0),
        inputs=tuple(span.index for span in spans if span.is_layer_input or span.is_attention_output),
    )


def transient_bytes(model: ComputeModel) -> int:
    """A bound from below: the gradients of the widest tensors in a layer's backward."""
    shape, load = model.shape, model.load
    width = (2 if shape.is_gated else 1) * shape.ffn + shape.hidden
    return width * shape.dtype_bytes * load.tokens // load.parallel


def resident_bytes(model: ComputeModel, gpus: int) -> dict[str, int]:
    """What no plan moves, divided over all GPUs (tensor parallel within a machine, sharded beyond it)."""
    count, size = model.shape.parameters, model.shape.dtype_bytes
    parts = {"parameters": size, "gradients": size, "optimizer": _OPTIMIZER_BYTES}
    return {name: count * part // gpus for name, part in parts.items()}
