"""Records one step as a trace: when forward saved each span and when backward read it, in time of compute alone.

The clock stands still while memsys moves, waits for or makes again a span. It costs two stamps a save and a read, and
owns no tensor: what is planned from it is numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from memsys import _tensor
from memsys.activations.clock import Clock
from memsys.activations.layers import LayerPlace
from memsys.planning.swap_plan import Link
from memsys.planning.trace import SegmentRecord, SpanRecord, StepTrace

if TYPE_CHECKING:
    from memsys.activations.decision import SavedTensor
    from memsys.activations.recipes import Recipe, RecipeBook
    from memsys.activations.rows.offer import CallFacts

# A step that moves much is held up by the lanes, but computes at least so much of its time.
_LEAST_COMPUTE_SHARE = 0.25


class MovedBytes(NamedTuple):
    """What has gone out and come back so far."""

    out_bytes: int
    in_bytes: int


@dataclass(frozen=True)
class _Seen:
    """One span, as forward saved it. key and inputs are those of its recipe."""

    saved: SavedTensor
    layer: int
    key: tuple[object, ...] | None
    inputs: tuple[int, ...]


class StepRecorder:
    """One forward and its backward. `is_light`: only how long they took, where stamps are dear."""

    def __init__(self, clock: Clock, place: LayerPlace, moved: Callable[[], MovedBytes],
                 is_light: bool = False) -> None:  # fmt: skip
        self._clock = clock
        self._place = place
        self._moved = moved
        self._moved_at = [moved()]  # at the beginning, and the ends of forward and backward
        self._is_light = is_light
        self._begin = clock.stamp()
        self._forward_end: object = None
        self._forward_pauses = 0
        self._end: object = None
        self._seen: list[_Seen] = []
        self._pauses: list[tuple[object, object]] = []  # where the clock stood still
        self._saved_at: list[int] = []  # of each span: how many pauses had been when it was saved
        self._reads: list[tuple[int, int]] = []  # (span, how many pauses had been)
        self._deaths: dict[int, tuple[object, int]] = {}
        self._unread: set[int] = set()
        self._paused: object = None
        self._depth = 0
        self._owner = 0  # the thread that stopped the clock: what another does meanwhile does not count
        self._is_armed = False
        self._lock = threading.RLock()  # a span may die wherever memory is asked for

    # While the step runs -------------------------------------------------------------------------------------------

    def note_saved(self, saved: SavedTensor, recipe: Recipe | None) -> None:
        """Forward has saved a span: the clock stands still until `resume`."""
        key, inputs = (None, ()) if recipe is None else (recipe.key, recipe.input_indices())
        self._seen.append(_Seen(saved, self._place.layer, key, inputs))
        self._unread.add(saved.index)
        self.pause()
        self._saved_at.append(len(self._pauses))

    def note_read(self, index: int) -> None:
        """Backward wants a span: the clock stands still until `resume`. What is read to make another one again
        does not count."""
        if not self._is_armed and not self.is_complete and _tensor.in_backward():
            self._is_armed = True
            _tensor.at_end_of_backward(self._end_backward)
        if self.pause() and self._is_armed and not self._is_light:
            self._reads.append((index, len(self._pauses)))
        self._unread.discard(index)

    def note_died(self, index: int) -> None:
        """The graph let go of a span: what is counted for it is counted no more."""
        if self._is_armed and not self._is_light:
            with self._lock:
                is_running = self._depth == 0
                stamp = self._clock.stamp() if is_running else self._paused
                self._deaths[index] = (stamp, len(self._pauses))

    def pause(self) -> bool:
        """The clock stands still until `resume`; returns whether it ran until now."""
        me = threading.get_ident()
        with self._lock:
            if self._depth > 0 and self._owner != me:
                return False
            self._owner, self._depth = me, self._depth + 1
            if self._depth == 1 and not self._is_light:
                self._paused = self._clock.stamp()
            return self._depth == 1

    def resume(self) -> None:
        """The clock goes on."""
        with self._lock:
            if self._depth == 0 or self._owner != threading.get_ident():
                return
            self._depth -= 1
            if self._depth == 0 and not self._is_light:
                self._pauses.append((self._paused, self._clock.stamp()))

    def end_forward(self) -> None:
        self._forward_end = self._clock.stamp()
        self._forward_pauses = len(self._pauses)
        self._moved_at[1:] = [self._moved()]

    def _end_backward(self) -> None:
        self._end = self._clock.stamp()
        self._moved_at[2:] = [self._moved()]
        self._is_armed = False

    @property
    def is_complete(self) -> bool:
        """Whether a backward has ended that read every span."""
        return self._end is not None and not self._is_armed and not self._unread

    @property
    def has_ended(self) -> bool:
        """Whether a backward has ended: what it left unread counts as read at its end."""
        return self._end is not None and not self._is_armed and self._forward_end is not None

    # Afterwards ----------------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(seen.saved.bytes for seen in self._seen)

    def step_us(self) -> float:
        """From the first operation to the end of backward, with all that memsys did and waited for."""
        self._clock.settle()
        return self._clock.between_us(self._begin, self._end)

    def trace(self, device: str, recipes: RecipeBook | None, resident_bytes: Mapping[str, int],
              link: Link | None = None, calls: Sequence[CallFacts] = ()) -> StepTrace:  # fmt: skip
        """What was recorded. link: what the bytes moved over; by how much that held compute up is taken out, too.
        calls: those that may be divided by rows."""
        self._clock.settle()
        times = _Times(self._clock, self._begin, self._pauses)
        forward_us = times.at(self._forward_end, self._forward_pauses)
        whole_us = times.at(self._end, len(self._pauses))
        held_us = [_held_us(link, *pair) for pair in pairwise(self._moved_at)]
        scale = _share_left(forward_us, held_us[0]), _share_left(whole_us - forward_us, held_us[1])

        def clean(us: float) -> float:
            late_us = max(0.0, us - forward_us)
            return (us - late_us) * scale[0] + late_us * scale[1]

        reads: dict[int, tuple[float, float]] = {}
        for index, pause in self._reads:
            us = clean(max(forward_us, times.at_pause(pause)))
            reads[index] = (reads[index][0] if index in reads else us, us)
        for index, (stamp, pause) in self._deaths.items():
            if index in reads:
                reads[index] = (reads[index][0], max(reads[index][1], clean(times.at(stamp, pause))))
        spans = []
        for seen, pause in zip(self._seen, self._saved_at, strict=True):
            never_us = clean(whole_us)
            used_us = reads.get(seen.saved.index, (never_us, never_us))
            spans.append(_span_record(seen, clean(times.at_pause(pause)), used_us, recipes))
        end_us = clean(forward_us)
        return StepTrace(device, end_us, clean(whole_us) - end_us, tuple(spans), segment_records(spans, calls),
                         resident_bytes=dict(resident_bytes))  # fmt: skip


class _Times:
    """Turns stamps into microseconds of compute since the beginning, without the pauses before them."""

    def __init__(self, clock: Clock, begin: object, pauses: list[tuple[object, object]]) -> None:
        self._clock, self._begin = clock, begin
        self._pauses = pauses
        self._before_us = [0.0]
        for begin_stamp, end_stamp in pauses:
            self._before_us.append(self._before_us[-1] + clock.between_us(begin_stamp, end_stamp))

    def at(self, stamp: object, pause_count: int) -> float:
        return self._clock.between_us(self._begin, stamp) - self._before_us[pause_count]

    def at_pause(self, pause: int) -> float:
        return self.at(self._pauses[pause][0], pause)


def _held_us(link: Link | None, before: MovedBytes, after: MovedBytes) -> float:
    if link is None:
        return 0.0
    out_s = (after.out_bytes - before.out_bytes) / link.out_rate
    return link.slowdown * 1e6 * (out_s + (after.in_bytes - before.in_bytes) / link.in_rate)


def _share_left(raw_us: float, held_us: float) -> float:
    return 1.0 if raw_us <= 0 else max(_LEAST_COMPUTE_SHARE, 1 - held_us / raw_us)


def _span_record(seen: _Seen, saved_us: float, used_us: tuple[float, float], recipes: RecipeBook | None) -> SpanRecord:
    saved, rows = seen.saved, seen.saved.row_segment
    is_divisible = rows is not None and rows.is_proven and rows.row_bytes > 0 and rows.remake_us is not None
    remake_us = recipes.remake_us(seen.key) if recipes is not None and seen.key is not None else None
    return SpanRecord(
        index=saved.index, bytes=saved.bytes, dtype=str(saved.dtype).removeprefix("torch."), shape=tuple(saved.shape),
        producer=saved.producer, layer=seen.layer, saved_us=saved_us, first_use_us=used_us[0], last_use_us=used_us[1],
        is_layer_input=saved.is_layer_input, is_attention_output=saved.is_attention_output, remake_us=remake_us,
        remake_inputs=seen.inputs if remake_us is not None else (), segment=rows.id if is_divisible else -1,
        row_bytes=rows.row_bytes if is_divisible else 0,
    )  # fmt: skip


def segment_records(spans: Sequence[SpanRecord], calls: Sequence[CallFacts]) -> tuple[SegmentRecord, ...]:
    """The calls that have spans which can be divided by rows."""
    found = []
    for call in calls:
        members = [span for span in spans if span.segment == call.id]
        if members and call.remake_us is not None:
            found.append(SegmentRecord(
                id=call.id, layer=members[0].layer, row_count=call.row_count, remake_us=call.remake_us,
                begin_us=members[0].saved_us, end_us=members[-1].saved_us,
                first_use_us=min(span.first_use_us for span in members), inputs=tuple(call.inputs),
            ))  # fmt: skip
    return tuple(found)
