"""Traces for tests of plans: layers like those of a decoder, and small random ones."""

from __future__ import annotations

from hypothesis import strategies as st

from memsys.planning.swap_plan import Budgets, Choice, Hardware, Link, SwapPlan
from memsys.planning.trace import SegmentRecord, SpanRecord, StepTrace


def decoder_trace(layer_count: int = 4, row_count: int = 64, layer_us: float = 1000.0, unit_bytes: int = 1 << 20,
                  other_units: int = 14, remake_share: float = 0.3) -> StepTrace:  # fmt: skip
    """Identical layers: an input and an attention output of one unit each, and token-local spans of `other_units`
    units in all, half of them in one span, that `remake_share` of a layer's time makes again. A layer saves at its end,
    as with rounding buffers; backward takes twice as long and reads a layer when it reaches it."""
    spans, segments, forward_us = [], [], layer_count * layer_us
    units = (1, 1, other_units // 2, *[1] * (other_units - other_units // 2))
    for layer in range(layer_count):
        begin_us, end_us = layer * layer_us, (layer + 1) * layer_us
        back_us = forward_us + 2 * (forward_us - end_us)
        first = len(spans)
        for place, count in enumerate(units):
            bytes_ = count * unit_bytes
            spans.append(SpanRecord(
                len(spans), bytes_, "float16", (row_count, bytes_ // row_count // 2), "linear", layer, end_us, back_us,
                back_us + 2 * layer_us, is_layer_input=place == 0, is_attention_output=place == 1,
                segment=layer if place > 1 else -1, row_bytes=bytes_ // row_count if place > 1 else 0,
            ))  # fmt: skip
        inputs = (first, first + 1)
        remake_us = remake_share * layer_us
        segments.append(SegmentRecord(layer, layer, row_count, remake_us, begin_us, end_us, back_us, inputs))
    return StepTrace("cuda", forward_us, 2 * forward_us, tuple(spans), tuple(segments))


@st.composite
def traces(draw: st.DrawFn, max_layers: int = 3, max_spans: int = 4, max_rows: int = 8) -> StepTrace:
    """A few layers of a few spans each, some of which can be made again, or divided by the rows of their segment."""
    layer_count = draw(st.integers(1, max_layers))
    layers = [draw(_layer(max_spans, max_rows)) for _ in range(layer_count)]
    forward_us = float(sum(layer[0] for layer in layers))
    spans, segments, begin_us = [], [], 0.0
    for layer, (layer_us, parts, row_count, remake_us) in enumerate(layers):
        end_us, first = begin_us + layer_us, len(spans)
        back_us, stretch_us = forward_us + 2 * (forward_us - end_us), layer_us / len(parts)
        for place, (units, can_remake, is_divisible) in enumerate(parts):
            is_input = place == 0
            first_us = back_us + 2 * stretch_us * (len(parts) - 1 - place)
            spans.append(SpanRecord(
                len(spans), units * row_count * 10, "float32", (row_count, units), "op", layer,
                begin_us + stretch_us * place, first_us, first_us + 2 * stretch_us, is_layer_input=is_input,
                remake_us=1.5 * units if can_remake and not is_input else None,
                remake_inputs=(first,) if can_remake and not is_input else (),
                segment=layer if is_divisible and not is_input else -1,
                row_bytes=units * 10 if is_divisible and not is_input else 0,
            ))  # fmt: skip
        segments.append(SegmentRecord(layer, layer, row_count, remake_us, begin_us, end_us, back_us, (first,)))
        begin_us = end_us
    return StepTrace("cpu", forward_us, 2 * forward_us, tuple(spans), tuple(segments))


@st.composite
def _layer(draw: st.DrawFn, max_spans: int, max_rows: int) -> tuple[int, list[tuple[int, bool, bool]], int, float]:
    part = st.tuples(st.integers(1, 30), st.booleans(), st.booleans())
    parts = draw(st.lists(part, min_size=1, max_size=max_spans))
    return draw(st.integers(10, 200)), parts, draw(st.integers(1, max_rows)), float(draw(st.integers(1, 100)))


@st.composite
def hardwares(draw: st.DrawFn, with_host: bool = True) -> Hardware:
    """A file's link, perhaps a host's, both slow enough to matter to `traces`."""
    file = draw(links())
    host = draw(st.none() | links()) if with_host else None
    return Hardware(file, host, draw(st.sampled_from([1, 100, 1000, 10_000])))


@st.composite
def links(draw: st.DrawFn) -> Link:
    rate = st.sampled_from([1e6, 5e6, 2e7, 1e8])
    out_rate, in_rate = draw(rate), draw(rate)
    both_rate = draw(st.none() | st.just(0.7 * (out_rate + in_rate)))
    slowdown = draw(st.sampled_from([0.0, 0.0, 0.3]))
    return Link(out_rate, in_rate, both_rate, draw(st.sampled_from([0.0, 2.0])), slowdown)


@st.composite
def plans(draw: st.DrawFn, trace: StepTrace, hardware: Hardware) -> SwapPlan:
    """Any plan that the trace and the hardware can carry out."""
    away = [Choice.FILE] if hardware.host is None else [Choice.FILE, Choice.HOST]
    inputs = {index for segment in trace.segments for index in segment.inputs}
    choices = []
    for span in trace.spans:
        options = [Choice.KEEP, *away]
        options += [Choice.RECOMPUTE] * (span.remake_us is not None and span.index not in inputs)
        options += [Choice.ROWS] * (span.row_bytes > 0 and span.index not in inputs)
        choices.append(draw(st.sampled_from(options)))
    alphas = {segment.id: draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])) for segment in trace.segments}
    return SwapPlan(tuple(choices), alphas, draw(st.sampled_from(away)))


def tight_budgets(trace: StepTrace, share: float, host_share: float | None = None) -> Budgets:
    """A device budget of a share of what the trace saves, and perhaps a host budget."""
    host_bytes = None if host_share is None else int(host_share * trace.saved_bytes)
    return Budgets(int(share * trace.saved_bytes), host_bytes)
