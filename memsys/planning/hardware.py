"""What a machine can do, as figures that know their interval and who says so, and the plain rates taken from them.

The named GPUs are in memsys/planning/gpus.py; this machine is measured by memsys/report/machine.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum

from memsys.errors import InputError
from memsys.planning.swap_plan import Hardware, Link


class Corner(Enum):
    """Which end of every figure's interval is meant. Each figure is one of which more is faster."""

    LOW = "low"
    MIDDLE = "value"
    HIGH = "high"


@dataclass(frozen=True)
class Figure:
    """A number between `low` and `high`, and its source; is_verified: the source was read, not remembered."""

    value: float
    low: float
    high: float
    source: str
    is_verified: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high:
            raise InputError(f"a figure must lie in its interval, found {self.low} <= {self.value} <= {self.high} "
                             f"({self.source}); correct it")  # fmt: skip

    def at(self, corner: Corner) -> float:
        return getattr(self, corner.value)


def exactly(value: float, source: str, is_verified: bool = True) -> Figure:
    """A figure without uncertainty: a specification."""
    return Figure(value, value, value, source, is_verified)


def between(low: float, high: float, source: str, is_verified: bool = True) -> Figure:
    """A figure known by its interval only: its value is the middle, so that nobody chooses it."""
    return Figure((low + high) / 2, low, high, source, is_verified)


@dataclass(frozen=True)
class Rates:
    """One machine's rates as plain numbers. FLOP/s are achieved ones but for `peak_flops`; rates are bytes a second.

    collective_rate: of one GPU to the others, as NCCL counts bus bandwidth. The links are one GPU's.
    """

    peak_flops: float
    gemm_flops: float
    attention_forward_flops: float
    attention_backward_flops: float
    memory_rate: float
    collective_rate: float
    host: Link | None
    file: Link | None

    def hardware(self, window_bytes: int, gpus: int = 1) -> Hardware:
        """What a planner needs of it; at most `window_bytes` leave, and as many come, at once. The machine's drives are
        shared by `gpus`."""
        file = self.file
        if file is not None:
            file = replace(file, out_rate=file.out_rate / gpus, in_rate=file.in_rate / gpus)
        return Hardware(file, self.host, window_bytes)


@dataclass(frozen=True)
class Machine:
    """One GPU with its share of the machine around it.

    Shares are of `peak_flops` (dense, bf16) or of `memory_rate`; out and in are as the GPU sees the host's memory;
    both_share: of out_rate, what both directions carry together when both are busy. file rates: of all the drives of
    the machine, or None.
    """

    name: str
    peak_flops: Figure
    memory_bytes: Figure
    memory_rate: Figure
    memory_share: Figure
    gemm_share: Figure
    attention_forward_share: Figure
    attention_backward_share: Figure
    out_rate: Figure
    in_rate: Figure
    both_share: Figure
    collective_rate: Figure
    file_out_rate: Figure | None = None
    file_in_rate: Figure | None = None
    is_host_memory: bool = False  # a CPU: the device is host memory itself, and the only tier below it is a file

    def rates(self, corner: Corner = Corner.MIDDLE) -> Rates:
        """The rates at one end of all intervals, or in their middle."""
        peak, out = self.peak_flops.at(corner), self.out_rate.at(corner)
        file = None
        if self.file_out_rate is not None and self.file_in_rate is not None:
            file = Link(self.file_out_rate.at(corner), self.file_in_rate.at(corner))
        host = None if self.is_host_memory else Link(out, self.in_rate.at(corner), out * self.both_share.at(corner))
        return Rates(
            peak_flops=peak,
            gemm_flops=peak * self.gemm_share.at(corner),
            attention_forward_flops=peak * self.attention_forward_share.at(corner),
            attention_backward_flops=peak * self.attention_backward_share.at(corner),
            memory_rate=self.memory_rate.at(corner) * self.memory_share.at(corner),
            collective_rate=self.collective_rate.at(corner),
            host=host,
            file=file,
        )

    def figures(self) -> dict[str, Figure]:
        """Every figure by its name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Figure)}
