"""What a trace says of each repeated layer as a whole: its spans, and how long its forward takes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from memsys.planning.trace import StepTrace


@dataclass(frozen=True)
class LayerSpans:
    """One layer: the spans that are its input, all others, and the time of its forward."""

    inputs: tuple[int, ...]
    inner: tuple[int, ...]
    forward_us: float


def layer_spans(trace: StepTrace) -> dict[int, LayerSpans]:
    """The layers of a trace by number. One begins where its first span is saved or its first segment begins, and ends
    where anything of another layer is saved next, or with forward."""
    begins: dict[int, float] = {}
    members: dict[int, list[int]] = {}
    for index, span in enumerate(trace.spans):
        if span.layer >= 0:
            members.setdefault(span.layer, []).append(index)
            begins[span.layer] = min(begins.get(span.layer, span.saved_us), span.saved_us)
    for segment in trace.segments:
        if segment.layer in begins:
            begins[segment.layer] = min(begins[segment.layer], segment.begin_us)
    found, starts = {}, sorted(set(begins.values()))
    for layer, indices in members.items():
        last_us = max(trace.spans[index].saved_us for index in indices)
        later = bisect_left(starts, last_us)
        if later < len(starts) and starts[later] == begins[layer]:
            later += 1
        ends = starts[later : later + 1]
        behind = indices[-1] + 1
        if behind < len(trace.spans) and trace.spans[behind].layer < 0:
            ends.append(max(last_us, trace.spans[behind].saved_us))
        end_us = min(ends, default=trace.forward_us)
        inputs = tuple(index for index in indices if trace.spans[index].is_layer_input)
        inner = tuple(index for index in indices if not trace.spans[index].is_layer_input)
        found[layer] = LayerSpans(inputs, inner, max(0.0, end_us - begins[layer]))
    return found
