"""What one training step does with memory and time: what plans are made from, simulations run and reports show.

Numbers only, no tensor: a trace can be recorded from a step, computed from a model's shape, saved and compared.
Times count microseconds of compute from the step's first operation; waiting for transfers is taken out of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from memsys.planning import document

FORMAT = "memsys-trace-2"


@dataclass(frozen=True)
class SpanRecord:
    """One storage span that autograd saved.

    index: its place in the order of packing; layer: position in the repeated stack (-1: outside of it);
    saved_us: when forward saved it; first_use_us: when backward first read it; last_use_us: when it let go of it;
    remake_us: to make it again by one cheap operation from the spans `remake_inputs` (None: it can't be); segment: of
    token-local rows (-1: none), where row_bytes is what one sequence position takes of `bytes` (0: it can't be divided
    by rows).
    """

    index: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]
    producer: str
    layer: int
    saved_us: float
    first_use_us: float
    last_use_us: float
    is_layer_input: bool = False
    is_attention_output: bool = False
    remake_us: float | None = None
    remake_inputs: tuple[int, ...] = ()
    segment: int = -1
    row_bytes: int = 0


@dataclass(frozen=True)
class SegmentRecord:
    """A token-local stretch of one layer, which can be run again on some of its rows.

    remake_us: to run all `row_count` rows again, attention left out; begin_us, end_us: in forward; first_use_us: when
    backward first reads one of its spans; inputs: spans that it reads whole (layer input, attention output).
    """

    id: int
    layer: int
    row_count: int
    remake_us: float
    begin_us: float
    end_us: float
    first_use_us: float
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One allocation that is not saved: alive in the half-open range [begin, end) of a step's allocation events.

    stream: 0 is the compute stream; layer and phase ("forward", "backward") group what repeats.
    """

    bytes: int
    begin: int
    end: int
    stream: int = 0
    layer: int = -1
    phase: str = "forward"


@dataclass(frozen=True)
class StepTrace:
    """One step. `resident_bytes` are what no plan moves: parameters, gradients, optimizer, by name.

    transient_peak_bytes: the most that requests had alive at once (0 where they were not recorded).
    """

    device: str
    forward_us: float
    backward_us: float
    spans: tuple[SpanRecord, ...]
    segments: tuple[SegmentRecord, ...] = ()
    requests: tuple[Request, ...] = ()
    transient_peak_bytes: int = 0
    resident_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def saved_bytes(self) -> int:
        return sum(span.bytes for span in self.spans)

    @property
    def signature(self) -> tuple[int, ...]:
        """What tells one shape of step from another: the spans' sizes in their order."""
        return tuple(span.bytes for span in self.spans)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace as JSON."""
        document.write(path, FORMAT, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StepTrace:
        """Reads what `save` wrote. Raises InputError for a file that is no trace, or not the one that was saved."""
        with document.refusing(path, "a trace that memsys saved", "record it again by memsys.plan or `memsys trace`"):
            trace = document.read(path, FORMAT, cls)
            trace.check()
        return trace

    def check(self) -> None:
        """Raises ValueError where a span or segment speaks of what is not there, or a size or time is negative."""
        for place, span in enumerate(self.spans):
            if span.index != place or not all(0 <= index < len(self.spans) for index in span.remake_inputs):
                raise ValueError(f"span {place} has the number {span.index} and is made from {span.remake_inputs}")
            if min(span.bytes, span.row_bytes, span.saved_us, span.first_use_us, span.last_use_us, *span.shape) < 0:
                raise ValueError(f"span {place} has a negative size or time")
        for segment in self.segments:
            if not all(0 <= index < len(self.spans) for index in segment.inputs) or segment.row_count < 1:
                raise ValueError(f"segment {segment.id} has {segment.row_count} rows and reads {segment.inputs}")
        known = {segment.id for segment in self.segments}
        if any(span.segment not in known for span in self.spans if span.segment != -1):
            raise ValueError("a span is of a segment that is not there")
        if min(self.forward_us, self.backward_us, self.transient_peak_bytes) < 0:
            raise ValueError("a step has a negative time or size")
