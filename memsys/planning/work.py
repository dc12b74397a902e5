"""What a plan makes of a trace, span by span: bytes that move, what is made again and when, and all events in order.

Making something again reads its inputs, so they are wanted earlier than the trace says; here those times are found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from memsys.errors import InputError
from memsys.planning.layers import layer_spans
from memsys.planning.swap_plan import Choice, Hardware, SwapPlan
from memsys.planning.trace import StepTrace

HOST, FILE = 0, 1  # places of the tiers in lists


class Kind(IntEnum):
    """What happens at an event of the step."""

    SAVE = 0
    BACKWARD = 1  # begins
    READ = 2
    REVIVE = 3  # part of a layer is run again; what is made from its results is read after it
    RELEASE = 4


@dataclass(frozen=True)
class Revival:
    """Rows of a segment, or a whole layer, run again just before backward first reads one of the results."""

    first_us: float
    remake_us: float
    bytes: int  # that it gives, besides what arrives
    members: tuple[int, ...]
    inputs: tuple[int, ...]


class Columns:
    """A trace as arrays, by span index: read once, for as many plans as are tried on it."""

    def __init__(self, trace: StepTrace) -> None:
        spans = trace.spans
        self.trace = trace
        self.bytes = np.array([span.bytes for span in spans], dtype=np.int64)
        self.saved_us = np.array([span.saved_us for span in spans], dtype=float)
        self.first_us = np.array([span.first_use_us for span in spans], dtype=float)
        self.last_us = np.array([span.last_use_us for span in spans], dtype=float)
        empty = next((segment for segment in trace.segments if segment.row_count < 1), None)
        if empty is not None:
            raise InputError(f"trace: segment {empty.id} has {empty.row_count} rows; record the step again")
        wrong = np.flatnonzero((self.saved_us > self.first_us) | (self.first_us > self.last_us))
        if len(wrong):
            span = spans[wrong[0]]
            raise InputError(f"trace: span {wrong[0]} is saved at {span.saved_us:.1f} us and read from "
                             f"{span.first_use_us:.1f} to {span.last_use_us:.1f} us; record it again")  # fmt: skip


@dataclass
class Work:
    """A plan on a trace, in lists by span index. `tier`: where a span's `moved` bytes go, -1 for nowhere; `kept`:
    bytes that stay from when they are saved."""

    bytes: list[int]
    moved: list[int]
    kept: list[int]
    tier: list[int]
    remake_us: list[float | None]  # by an operation of its own; None: it is not
    revived: list[int]  # bytes that a revival gives
    first_us: list[float]
    last_us: list[float]
    revivals: list[Revival] = field(default_factory=list)
    event_us: list[float] = field(default_factory=list)
    event_kind: list[int] = field(default_factory=list)
    event_index: list[int] = field(default_factory=list)

    @property
    def reads(self) -> list[int]:
        """The spans that move, in the order in which backward wants them."""
        read, moved = Kind.READ.value, self.moved
        pairs = zip(self.event_kind, self.event_index, strict=True)
        return [index for kind, index in pairs if kind == read and moved[index]]


def moved_row_count(alpha: float, row_count: int) -> int:
    """Of a segment's rows, how many are swapped when the plan says alpha."""
    return min(row_count, math.ceil(alpha * row_count))


def lay_out(columns: Columns, plan: SwapPlan, hardware: Hardware) -> Work:
    """The work of a step under a plan. Raises InputError for a plan that the trace or the hardware can't carry out."""
    trace = columns.trace
    _check(trace, plan, hardware)
    chosen = list(plan.choices)
    is_host = np.array([choice is Choice.HOST for choice in chosen], dtype=bool)
    is_file = np.array([choice is Choice.FILE for choice in chosen], dtype=bool)
    is_kept = np.array([choice is Choice.KEEP for choice in chosen], dtype=bool)
    work = Work(
        bytes=columns.bytes.tolist(),
        moved=np.where(is_host | is_file, columns.bytes, 0).tolist(),
        kept=np.where(is_kept, columns.bytes, 0).tolist(),
        tier=np.where(is_host, HOST, np.where(is_file, FILE, -1)).tolist(),
        remake_us=[None] * len(chosen),
        revived=[0] * len(chosen),
        first_us=columns.first_us.tolist(),
        last_us=columns.last_us.tolist(),
    )
    rank = [0] * len(chosen)
    if plan.reruns or not (is_host | is_file | is_kept).all():
        _divide_rows(trace, plan, work)
        _rerun_layers(trace, plan, work)
        rank = _want_inputs(trace, plan, work)
    _order_events(columns, work, rank)
    return work


def _check(trace: StepTrace, plan: SwapPlan, hardware: Hardware) -> None:
    if len(plan.choices) != len(trace.spans):
        raise InputError(f"plan: {len(plan.choices)} choices for a trace of {len(trace.spans)} spans; "
                         "make the plan from this trace")  # fmt: skip
    used = set(plan.choices)
    if Choice.ROWS in used:
        used.add(plan.row_tier)
    for choice, link in ((Choice.HOST, hardware.host), (Choice.FILE, hardware.file)):
        if choice in used and link is None:
            raise InputError(f"plan: it sends spans to {choice.name}, and the hardware has no such link; solve the "
                             "plan for this hardware")  # fmt: skip
    if plan.row_tier not in (Choice.HOST, Choice.FILE):
        raise InputError(f"plan: row_tier {plan.row_tier.name} is no tier; wanted HOST or FILE")


def _divide_rows(trace: StepTrace, plan: SwapPlan, work: Work) -> None:
    tier = HOST if plan.row_tier is Choice.HOST else FILE
    segments = {segment.id: segment for segment in trace.segments}
    divided: dict[int, list[int]] = {}
    for index, choice in enumerate(plan.choices):
        if choice is Choice.ROWS:
            span = trace.spans[index]
            if span.segment not in segments or not span.row_bytes:
                raise InputError(f"plan: ROWS of span {index}, which can't be divided by rows; choose HOST or FILE")
            divided.setdefault(span.segment, []).append(index)
    for id_, members in divided.items():
        segment, alpha = segments[id_], plan.alphas.get(id_, 1.0)
        if not 0.0 <= alpha <= 1.0:
            raise InputError(f"plan: alpha {alpha} of segment {id_}; wanted a share from 0 to 1")
        rows = moved_row_count(alpha, segment.row_count)
        for index in members:
            span = trace.spans[index]
            rest_bytes = max(0, span.bytes - segment.row_count * span.row_bytes)  # of no row
            work.moved[index] = min(span.bytes, rows * span.row_bytes + rest_bytes) if rows else 0
            work.tier[index] = tier
        if rows < segment.row_count:
            first_us = min(segment.first_use_us, *(work.first_us[index] for index in members))
            _revive(work, first_us, (1 - rows / segment.row_count) * segment.remake_us, members, segment.inputs)
            bad = next((i for i in segment.inputs if plan.choices[i] in (Choice.ROWS, Choice.RECOMPUTE)), None)
            if bad is not None:
                raise InputError(f"plan: segment {id_} reads span {bad} whole; KEEP it, or move it to HOST or FILE")


def _rerun_layers(trace: StepTrace, plan: SwapPlan, work: Work) -> None:
    layers = layer_spans(trace) if plan.reruns else {}
    for layer in plan.reruns:
        if layer not in layers:
            raise InputError(f"plan: it runs layer {layer} again, and the trace has none; make it from this trace")
        found = layers[layer]
        members = [index for index in found.inner if plan.choices[index] is Choice.RECOMPUTE]
        if not found.inputs or any(plan.choices[i] in (Choice.RECOMPUTE, Choice.ROWS) for i in found.inputs):
            raise InputError(f"plan: layer {layer} is run again from its input, which is not there whole; KEEP it, or "
                             "move it to HOST or FILE")  # fmt: skip
        if members:
            first_us = min(work.first_us[index] for index in members)
            _revive(work, first_us, found.forward_us, members, found.inputs)


def _revive(work: Work, first_us: float, remake_us: float, members: list[int], inputs: tuple[int, ...]) -> None:
    given_bytes = 0
    for index in members:
        work.revived[index] = work.bytes[index] - work.moved[index]
        given_bytes += work.revived[index]
        work.first_us[index] = first_us
    work.revivals.append(Revival(first_us, remake_us, given_bytes, tuple(members), tuple(inputs)))


def _want_inputs(trace: StepTrace, plan: SwapPlan, work: Work) -> list[int]:
    """Moves reads ahead to where something is made from them; returns each span's place among reads of one moment."""
    in_revival = {index for revival in work.revivals for index in revival.members}
    rank = [1 if index in in_revival and not work.moved[index] else 0 for index in range(len(trace.spans))]
    for index, choice in enumerate(plan.choices):
        if choice is not Choice.RECOMPUTE or index in in_revival:
            continue
        span = trace.spans[index]
        if span.remake_us is None or any(not 0 <= wanted < index for wanted in span.remake_inputs):
            raise InputError(f"plan: RECOMPUTE of span {index}, which no cheap operation makes from earlier spans; "
                             "KEEP it, or move it to HOST or FILE")  # fmt: skip
        work.remake_us[index] = span.remake_us
        of_inputs = (1 if wanted in in_revival else rank[wanted] for wanted in span.remake_inputs)
        rank[index] = 1 + max(of_inputs, default=0)
    for index in range(len(trace.spans) - 1, -1, -1):  # inputs come before what is made from them
        if work.remake_us[index] is not None:
            for wanted in trace.spans[index].remake_inputs:
                _want(work, wanted, work.first_us[index])
    for place, revival in enumerate(work.revivals):
        first_us = min(revival.first_us, *(work.first_us[index] for index in revival.members))
        if first_us < revival.first_us:
            work.revivals[place] = Revival(
                first_us, revival.remake_us, revival.bytes, revival.members, revival.inputs)  # fmt: skip
            for index in revival.members:
                work.first_us[index] = first_us
        for wanted in revival.inputs:
            _want(work, wanted, first_us)
    return rank


def _want(work: Work, index: int, first_us: float) -> None:
    work.first_us[index] = min(work.first_us[index], first_us)
    work.last_us[index] = max(work.last_us[index], first_us)


def _order_events(columns: Columns, work: Work, rank: list[int]) -> None:
    count, revival_count = len(rank), len(work.revivals)
    first_us, last_us = np.array(work.first_us, dtype=float), np.array(work.last_us, dtype=float)
    early = np.flatnonzero(first_us < columns.saved_us)
    if len(early):
        raise InputError(f"plan: span {early[0]} is wanted to make something again before it is saved; record the "
                         "trace again")  # fmt: skip
    revived_us = [revival.first_us for revival in work.revivals]
    us = np.concatenate((columns.saved_us, [columns.trace.forward_us], first_us, revived_us, last_us))
    kind = np.repeat([kind.value for kind in Kind], (count, 1, count, revival_count, count))
    index = np.concatenate((range(count), [-1], range(count), range(revival_count), range(count))).astype(int)
    reads = slice(count + 1, 2 * count + 1)
    ranks, wanted_us = np.zeros(len(us)), np.zeros(len(us))
    ranks[reads] = rank
    ranks[reads.stop : reads.stop + revival_count] = 0.5  # after what it reads
    turn = np.where(kind == Kind.REVIVE, Kind.READ, kind) + ranks / (2 + max(rank, default=0))
    # What was read before goes before anything else is read; what is read only now goes after that.
    turn[reads.stop + revival_count :][last_us > first_us] = Kind.BACKWARD + 0.5
    wanted_us[reads] = columns.first_us
    place = np.where(kind == Kind.SAVE, index, -index)  # backward goes the other way
    order = np.lexsort((place, wanted_us, turn, us))
    work.event_us, work.event_kind, work.event_index = us[order].tolist(), kind[order].tolist(), index[order].tolist()
