"""What serving weights from a file costs, by the model of "LLM in a flash" (Alizadeh et al., ACL 2024, section 2):
I/O (bytes over the rate at their chunk size and queue depth), memory management (putting what was read in place), and
compute. Pure functions: sizes and rates in, seconds out. What measures the rates is memsys/weights/calibrate.py.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from memsys.errors import InputError


@dataclass(frozen=True)
class RatePoint:
    """A measured rate: reads of `chunk_bytes` each, `queue_depth` of them in flight."""

    chunk_bytes: int
    queue_depth: int
    bytes_per_s: float


class ReadRates:
    """Rates of a file at every chunk size and queue depth, from some that were measured.

    Between the points the rate is interpolated (its logarithm over the logarithms of both). A rate never falls with
    chunk size or depth, because a large read may be done as several small ones: where a measurement says so, it is
    replaced by the smaller read's. Below the smallest chunk and depth each read takes as long as the smallest
    measured; above the largest the rate stays.
    """

    def __init__(self, points: Iterable[RatePoint]) -> None:
        self.points = tuple(points)
        self._chunks = sorted({point.chunk_bytes for point in self.points})
        self._depths = sorted({point.queue_depth for point in self.points})
        found = {(point.queue_depth, point.chunk_bytes): point.bytes_per_s for point in self.points}
        wanted = [(depth, chunk) for depth in self._depths for chunk in self._chunks]
        if not wanted or len(found) != len(self.points) or set(found) != set(wanted) or min(found.values()) <= 0:
            raise InputError(f"rates: wanted one positive rate for each chunk size at each queue depth, found "
                             f"{len(found)} for {len(self._chunks)} sizes and {len(self._depths)} depths; "
                             "use memsys.weights.calibrate.calibrate")  # fmt: skip
        self._grid: list[list[float]] = []
        for depth in self._depths:
            row, floor = [], 0.0
            for column, chunk in enumerate(self._chunks):
                below = self._grid[-1][column] if self._grid else 0.0
                floor = max(floor, below, found[depth, chunk])
                row.append(floor)
            self._grid.append(row)

    def at(self, chunk_bytes: float, queue_depth: float) -> float:
        """Bytes per second of reads of `chunk_bytes` with `queue_depth` in flight, both positive."""
        rows = [_interpolate(self._chunks, row, chunk_bytes) for row in self._grid]
        return _interpolate(self._depths, rows, queue_depth)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadRates) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)


def _interpolate(places: list[int], values: list[float], place: float) -> float:
    """The value at `place`: a straight line between the logarithms, slope 1 before the first, level after the last."""
    if place <= places[0]:
        return values[0] * place / places[0]
    if place >= places[-1]:
        return values[-1]
    right = bisect.bisect_right(places, place)
    low, high = places[right - 1], places[right]
    share = math.log(place / low) / math.log(high / low)
    return values[right - 1] ** (1 - share) * values[right] ** share


@dataclass(frozen=True)
class Rates:
    """What a machine can do. `copy` and `compute` count bytes that one thread copies within memory and floating-point
    operations, both per second; `touch` counts bytes of weights that a product with few rows reads from memory."""

    read: ReadRates
    copy_bytes_per_s: float
    touch_bytes_per_s: float
    compute_flops: float
    is_direct: bool = True

    def __post_init__(self) -> None:
        for name in ("copy_bytes_per_s", "touch_bytes_per_s", "compute_flops"):
            if not getattr(self, name) > 0:
                raise InputError(f"rates: {name} must be positive, found {getattr(self, name)}; measure it")

    def __str__(self) -> str:
        depths = sorted({point.queue_depth for point in self.read.points})
        lines = ["chunk, KiB".rjust(12) + "".join(f"{f'depth {depth}, MB/s':>18}" for depth in depths)]
        for chunk in sorted({point.chunk_bytes for point in self.read.points}):
            lines.append(f"{chunk / 1024:>12g}" + "".join(f"{self.read.at(chunk, d) / 1e6:>18.0f}" for d in depths))
        lines.append(f"copies {self.copy_bytes_per_s / 1e9:.1f} GB/s, products read weights at "
                     f"{self.touch_bytes_per_s / 1e9:.1f} GB/s and compute {self.compute_flops / 1e9:.0f} GFLOP/s; "
                     f"reads {'past' if self.is_direct else 'THROUGH'} the page cache")  # fmt: skip
        return "\n".join(lines)


@dataclass(frozen=True)
class Read:
    """Bytes that come from the file in reads of one size."""

    size_bytes: float
    chunk_bytes: float
    queue_depth: int = 32


@dataclass(frozen=True)
class Work:
    """What a token or a step does with weights: reads, bytes copied to their place, operations, bytes of weights that
    its products touch, and bytes written to the file system (none, while the weights are frozen)."""

    reads: tuple[Read, ...] = ()
    copied_bytes: float = 0
    flops: float = 0
    touched_bytes: float = 0
    written_bytes: float = 0


@dataclass(frozen=True)
class Cost:
    """Seconds by the paper's three terms; what one after another takes is their sum."""

    io_s: float = 0.0
    management_s: float = 0.0
    compute_s: float = 0.0
    read_bytes: float = 0
    written_bytes: float = 0

    @property
    def total_s(self) -> float:
        """When nothing overlaps, as in the paper's tables."""
        return self.io_s + self.management_s + self.compute_s

    @property
    def overlapped_s(self) -> float:
        """The least that is possible when the next layer is read while this one computes."""
        return max(self.io_s, self.management_s + self.compute_s)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __str__(self) -> str:
        written = "no byte written" if not self.written_bytes else f"{self.written_bytes / 1e6:.3f} MB written"
        return (f"{self.io_s * 1e3:.3f} ms I/O + {self.management_s * 1e3:.3f} ms management + "
                f"{self.compute_s * 1e3:.3f} ms compute = {self.total_s * 1e3:.3f} ms; "
                f"{self.read_bytes / 1e6:.3f} MB read, {written}")  # fmt: skip


def predict(work: Work, rates: Rates) -> Cost:
    """What `work` takes at these rates: its reads one after another, in management its copies, in compute the longer
    of its operations and of touching its weights once."""
    for read in work.reads:
        if read.size_bytes < 0 or read.chunk_bytes <= 0 or read.queue_depth <= 0:
            raise InputError(f"predict: {read} is no read; give its sizes in bytes, and a depth of at least 1")
    return Cost(
        io_s=sum(read.size_bytes / rates.read.at(read.chunk_bytes, read.queue_depth) for read in work.reads),
        management_s=work.copied_bytes / rates.copy_bytes_per_s,
        compute_s=max(work.flops / rates.compute_flops, work.touched_bytes / rates.touch_bytes_per_s),
        read_bytes=sum(read.size_bytes for read in work.reads),
        written_bytes=work.written_bytes,
    )


def worn_share(cost: Cost, count: int, endurance_bytes: float) -> float:
    """The share of a drive's rated endurance (terabytes written, in bytes) that `count` steps of this cost use up."""
    if endurance_bytes <= 0:
        raise InputError(f"worn_share: the rated endurance must be positive, found {endurance_bytes}; see the drive's "
                         "data sheet")  # fmt: skip
    return cost.written_bytes * count / endurance_bytes


def comparison(predicted: Cost, measured: Cost) -> str:
    """A table of the terms, predicted against measured."""
    lines = [f"{'term':<12}{'predicted':>14}{'measured':>14}{'predicted/measured':>20}"]
    rows = [("I/O", "io_s"), ("management", "management_s"), ("compute", "compute_s"), ("sum", "total_s")]
    for title, name in rows:
        one, other = getattr(predicted, name), getattr(measured, name)
        ratio = f"{one / other:.2f}" if other > 0 else "-"
        lines.append(f"{title:<12}{one * 1e3:>11.3f} ms{other * 1e3:>11.3f} ms{ratio:>20}")
    for title, name in (("read", "read_bytes"), ("written", "written_bytes")):
        one, other = getattr(predicted, name), getattr(measured, name)
        ratio = f"{one / other:.2f}" if other > 0 else "-"
        lines.append(f"{title:<12}{one / 1e6:>11.3f} MB{other / 1e6:>11.3f} MB{ratio:>20}")
    return "\n".join(lines)
