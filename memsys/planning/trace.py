"""What one training step does with memory and time: what plans are made from, simulations run and reports show.

Numbers only, no tensor: a trace can be recorded from a step, computed from a model's shape, saved and compared.
Times count microseconds of compute from the step's first operation; waiting for transfers is taken out of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from memsys.errors import InputError

FORMAT = "memsys-trace-1"


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
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.as_dict(), file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StepTrace:
        """Reads what `save` wrote. Raises InputError for a file that is no trace."""
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            return cls.from_dict(found)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{os.fspath(path)!r}: wanted a trace that memsys saved, found something else ({error}); "
                             "record it again by memsys.plan or `memsys trace`") from None  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """What `save` writes, and `from_dict` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, object]) -> StepTrace:
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, wanted {FORMAT!r}")
        values = {item.name: found[item.name] for item in fields(cls)}
        for name, kind in (("spans", SpanRecord), ("segments", SegmentRecord), ("requests", Request)):
            values[name] = tuple(kind(**_tuples(record)) for record in values[name])
        return cls(**values)


def _tuples(record: Mapping[str, object]) -> dict[str, object]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
