"""A long trace as a short one, for search: spans alike that lie together count as one.

Choices made for the short trace hold for the spans of the long one, which has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memsys.planning.swap_plan import SwapPlan
from memsys.planning.trace import SegmentRecord, SpanRecord, StepTrace


@dataclass(frozen=True)
class Coarse:
    """The short trace; group_of: its span for each span of the long one; segment_of: its segment for each segment."""

    trace: StepTrace
    group_of: tuple[int, ...]
    segment_of: dict[int, int]

    def spread(self, plan: SwapPlan) -> SwapPlan:
        """A plan for the short trace as one for the long trace."""
        choices = tuple(plan.choices[group] for group in self.group_of)
        alphas = {long: plan.alphas[short] for long, short in self.segment_of.items() if short in plan.alphas}
        return replace(plan, choices=choices, alphas=alphas)


def coarsen(trace: StepTrace, block_count: int) -> Coarse:
    """The trace in about `block_count` stretches, each with one span for every kind of span that it holds."""
    length = max(1, -(-len(trace.spans) // block_count))
    segments = {segment.id: segment for segment in trace.segments}
    segment_of = _merge_segments(trace, length)
    groups: dict[tuple, list[int]] = {}
    for index, span in enumerate(trace.spans):
        in_segment = segment_of.get(span.segment, -1) if span.row_bytes > 0 else -1
        can_be_made = span.remake_us is not None and all(0 <= wanted < index for wanted in span.remake_inputs)
        key = (index // length, in_segment, can_be_made, span.is_layer_input, span.is_attention_output)
        groups.setdefault(key, []).append(index)
    group_of = [0] * len(trace.spans)
    for place, members in enumerate(groups.values()):
        for index in members:
            group_of[index] = place
    spans = tuple(
        _merge_spans(trace, place, key[1], members, group_of)
        for place, (key, members) in enumerate(groups.items())
    )  # fmt: skip
    together: dict[int, list[SegmentRecord]] = {}
    for id_, place in segment_of.items():
        together.setdefault(place, []).append(segments[id_])
    merged = tuple(_merge_records(place, records, group_of) for place, records in together.items())
    return Coarse(replace(trace, spans=spans, segments=merged, requests=()), tuple(group_of), segment_of)


def _merge_segments(trace: StepTrace, length: int) -> dict[int, int]:
    """The short trace's segment for each: one for those of one stretch with the same count of rows."""
    first_span: dict[int, int] = {}
    for index, span in enumerate(trace.spans):
        if span.segment >= 0:
            first_span.setdefault(span.segment, index)
    keys: dict[tuple[int, int], int] = {}
    return {
        segment.id: keys.setdefault((first_span[segment.id] // length, segment.row_count), len(keys))
        for segment in trace.segments
        if segment.id in first_span
    }


def _merge_spans(trace: StepTrace, place: int, segment: int, members: list[int], group_of: list[int]) -> SpanRecord:
    spans = [trace.spans[index] for index in members]
    remake_us, inputs = None, set()
    if all(span.remake_us is not None for span in spans):
        inputs = {group_of[wanted] for span in spans for wanted in span.remake_inputs}
        if all(wanted < place for wanted in inputs):
            remake_us = sum(span.remake_us for span in spans)
    return replace(
        spans[0], index=place, bytes=sum(span.bytes for span in spans), saved_us=max(span.saved_us for span in spans),
        first_use_us=min(span.first_use_us for span in spans), last_use_us=max(span.last_use_us for span in spans),
        remake_us=remake_us, remake_inputs=tuple(sorted(inputs)) if remake_us is not None else (), segment=segment,
        row_bytes=sum(span.row_bytes for span in spans) if segment >= 0 else 0,
    )  # fmt: skip


def _merge_records(place: int, records: list[SegmentRecord], group_of: list[int]) -> SegmentRecord:
    return replace(
        records[0], id=place, remake_us=sum(record.remake_us for record in records),
        begin_us=min(record.begin_us for record in records), end_us=max(record.end_us for record in records),
        first_use_us=min(record.first_use_us for record in records),
        inputs=tuple(sorted({group_of[index] for record in records for index in record.inputs})),
    )  # fmt: skip
