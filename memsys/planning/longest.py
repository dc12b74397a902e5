"""The longest sequence that fits, by each way to train: nothing done, checkpointing, memsys with host, and with file.

What fits at all is asked, not what is fast: memsys is given the plan of fewest bytes, layer inputs below and each layer
run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from memsys.planning.compute import ComputeModel, Load
from memsys.planning.hardware import Machine
from memsys.planning.shapes import ModelShape
from memsys.planning.simulation import Limits, Simulation, simulate_model

WAYS = {
    "nothing": ("none", False),
    "checkpoint": ("checkpoint", False),
    "memsys host": ("checkpoint+host", False),
    "memsys host+file": ("checkpoint+host", True),
}
_STEP = 256
_LONGEST = 1 << 27


@dataclass(frozen=True)
class Longest:
    """seq: the longest multiple of 256 that fits; bound: whether nothing but the search's end, 2**27, stopped it;
    stopped_by: the tier that the next one would break; last: the simulation at `seq`, None if not even 256 fits."""

    seq: int
    is_unbounded: bool
    stopped_by: str
    last: Simulation | None


def longest_sequences(shape: ModelShape, machine: Machine, gpus: int, batch: int, limits: Limits) -> dict[str, Longest]:
    """By way, in the order of WAYS; those that the machine has no tier for are left out."""
    found = {}
    for name, (policy, has_file) in WAYS.items():
        part = machine if has_file else replace(machine, file_out_rate=None, file_in_rate=None)
        if policy == "checkpoint+host" and (machine.file_out_rate is None if has_file else machine.is_host_memory):
            continue
        if machine.is_host_memory:
            part = machine  # a CPU has no other link; these policies leave it alone
        found[name] = _search(lambda seq, part=part, policy=policy: simulate_model(
            ComputeModel(shape, part.rates(), Load(seq, batch, gpus)), part, policy, limits, alpha=0.0))  # fmt: skip
    return found


def _search(simulated: Callable[[int], Simulation]) -> Longest:
    """Doubles while it fits, then halves what is between to one part in a hundred."""
    low, last, high = 0, None, _STEP
    while high <= _LONGEST:
        tried = simulated(high)
        if not tried.fits:
            break
        low, last, high = high, tried, 2 * high
    else:
        return Longest(low, True, "", last)
    stopped_by = tried.overruns[0].tier
    while high - low > max(_STEP, low // 100):
        middle = (low + high) // 2 // _STEP * _STEP
        tried = simulated(middle)
        if tried.fits:
            low, last = middle, tried
        else:
            high, stopped_by = middle, tried.overruns[0].tier
    return Longest(low, False, stopped_by, last)
