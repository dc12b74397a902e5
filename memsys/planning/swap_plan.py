"""What a plan says: one choice for each saved span, a share of rows for each segment, and what that should cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from memsys.planning import document
from memsys.planning.describe import describe

FORMAT = "memsys-swap-plan-2"


class Choice(Enum):
    """What becomes of one saved span."""

    KEEP = "keep"
    HOST = "host"
    FILE = "file"
    RECOMPUTE = "recompute"  # by the one cheap operation that made it
    ROWS = "rows"  # the first rows swapped, to the plan's `row_tier`; the others recomputed with their segment


@dataclass(frozen=True)
class Budgets:
    """Bytes that saved tensors, buffers and transfers may take of each tier; None: no bound."""

    device_bytes: int | None = None
    host_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Link:
    """One pair of directions between the device and a lower tier, in bytes a second while a step computes.

    both_rate: of the two directions together when both are busy (None: they don't disturb one another);
    latency_us: of one transfer. slowdown: by what share of a transfer's time compute is held up (on a CPU the lanes
    take the cores' time; 0 on a GPU).
    """

    out_rate: float
    in_rate: float
    both_rate: float | None = None
    latency_us: float = 0.0
    slowdown: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """What carries the bytes: host is None where the device is host memory itself."""

    file: Link | None
    host: Link | None = None
    window_bytes: int = 24 << 20  # at most so many bytes leave, and as many are prefetched, at once


@dataclass(frozen=True)
class Prediction:
    """What a schedule of one step came to."""

    step_us: float
    forward_us: float
    backward_us: float
    stall_us: float  # waiting for transfers
    remade_us: float  # computing again
    peak_device_bytes: int  # kept + buffers + in flight, without transients and resident bytes
    peak_host_bytes: int
    peak_file_bytes: int
    out_bytes: int
    in_bytes: int


@dataclass(frozen=True)
class SwapPlan:
    """A choice for each span of a trace, in its order, and for each segment that is divided by rows the share `alpha`
    of its rows that is swapped.

    reruns: layers whose RECOMPUTE spans come from running the whole layer again from its input (a checkpoint);
    bound_us: no plan within the same budgets can be faster; declined: why nothing is moved at all, or None.
    budgets, hardware, signature: what it was made for (a signature as `StepTrace.signature`; empty: not known).
    """

    choices: tuple[Choice, ...]
    alphas: Mapping[int, float] = field(default_factory=dict)
    row_tier: Choice = Choice.FILE
    reruns: tuple[int, ...] = ()
    predicted: Prediction | None = None
    bound_us: float = 0.0
    solver: str = "greedy"
    solve_us: float = 0.0
    declined: str | None = None
    budgets: Budgets = field(default_factory=Budgets)
    hardware: Hardware | None = None
    signature: tuple[int, ...] = ()

    @property
    def gap(self) -> float:
        """By what share of the bound the predicted step is above it, at most, the best there is."""
        return self.predicted.step_us / self.bound_us - 1 if self.predicted is not None and self.bound_us > 0 else 0.0

    def describe(self) -> str:
        """A few lines: what goes where, what the step should cost, and how far from the best that can be."""
        return describe(self)

    def __str__(self) -> str:
        return self.describe()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        document.write(path, FORMAT, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SwapPlan:
        """Reads what `save` wrote. Raises InputError for a file that is no plan, or not the one that was saved."""
        with document.refusing(path, "a plan that memsys saved", "make it again by memsys.plan"):
            plan = document.read(path, FORMAT, cls)
            plan.check()
        return plan

    def check(self) -> None:
        """Raises ValueError for a plan that contradicts itself."""
        if self.signature and len(self.signature) != len(self.choices):
            raise ValueError(f"{len(self.choices)} choices for {len(self.signature)} spans")
        if self.row_tier not in (Choice.HOST, Choice.FILE):
            raise ValueError(f"rows go to {self.row_tier.value!r}, wanted host or file")
        if not all(0 <= alpha <= 1 for alpha in self.alphas.values()):
            raise ValueError(f"shares of rows {dict(self.alphas)}, wanted from 0 to 1")
