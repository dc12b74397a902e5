"""What `memsys.simulate` does: a trace from a shape and a machine's rates, a policy's plan of it, and its schedule.

The plan is the planner's own, stepped over the same links and op times that it plans with; only where the trace comes
from is different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memsys.budget import format_bytes, parse_budget
from memsys.errors import InputError
from memsys.planning import memo
from memsys.planning.compute import ComputeModel
from memsys.planning.hardware import Machine
from memsys.planning.policies import policy_plan
from memsys.planning.schedule import Overrun, schedule
from memsys.planning.shapes import ModelShape
from memsys.planning.swap_plan import Budgets, Hardware, Prediction, SwapPlan
from memsys.planning.synthetic import synthetic_trace
from memsys.planning.trace import StepTrace

# Of a device's memory: the context, cuBLAS's workspace and what an allocator can't use take the rest.
USABLE_SHARE = 0.95


@dataclass(frozen=True)
class Simulation:
    """One step on each of `gpus` equal GPUs; bytes and times are one GPU's.

    step_us: with the optimizer; mfu: model operations by the causal convention, without what is computed again, over
    the peak; exposed_us: compute waits for transfers; peak_bytes: by tier, "device" being what saved tensors take;
    alpha: the mean share of rows that are swapped, None where no layer is divided by rows; overruns: what does not fit.
    """

    model: ModelShape
    machine: str
    seq: int
    batch: int
    gpus: int
    policy: str
    step_us: float
    mfu: float
    exposed_us: float
    remade_us: float
    peak_bytes: Mapping[str, int]
    alpha: float | None
    overruns: tuple[Overrun, ...]
    predicted: Prediction
    plan: SwapPlan = field(repr=False)
    trace: StepTrace = field(repr=False)
    hardware: Hardware = field(repr=False)
    budgets: Budgets = field(repr=False)

    @property
    def fits(self) -> bool:
        return not self.overruns

    @property
    def added_us(self) -> float:
        """What the plan costs beside a step with everything kept."""
        return self.predicted.step_us - self.trace.forward_us - self.trace.backward_us

    def __str__(self) -> str:
        share = "" if self.alpha is None else f", {self.alpha:.1%} of the divided rows swapped"
        wanted = "".join(f"; does NOT fit: {item.tier} wants {format_bytes(item.wanted_bytes)} of "
                         f"{format_bytes(item.budget_bytes)}" for item in self.overruns)  # fmt: skip
        peaks = ", ".join(f"{tier} {format_bytes(count)}" for tier, count in self.peak_bytes.items())
        return (f"{self.model.name} on {self.gpus} x {self.machine}, sequence {self.seq}, {self.policy}: step "
                f"{self.step_us / 1e6:.3f} s, MFU {self.mfu:.1%}, waiting {self.exposed_us / 1e6:.3f} s, computing "
                f"again {self.remade_us / 1e6:.3f} s, peaks {peaks}{share}{wanted}")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Bytes of one GPU as people write them ("60GiB"); percentages are of the device's memory, and for the others
    need `simulate`'s caller to know what is there. None: the device's own memory; no bound below it."""

    device: int | str | None = None
    host: int | str | None = None
    file: int | str | None = None


def simulate_model(
    model: ComputeModel, machine: Machine, policy: str, limits: Limits, alpha: float | None = None
) -> Simulation:
    """One step of a model under its load; alpha: as in `memsys.simulate`."""
    trace = synthetic_trace(model)
    memory_bytes = int(machine.memory_bytes.value * USABLE_SHARE)
    budgets = _budgets(limits, memory_bytes, trace, machine.is_host_memory)
    hardware = model.rates.hardware(memo.layer_bytes(model).total, model.load.parallel)
    if alpha is None:
        alpha = memo.alpha(model, _out_rate(hardware), budgets.host_bytes)
    plan = policy_plan(policy, trace, hardware, budgets, _whole_rows(alpha, model.load.seq))
    found = schedule(trace, plan, hardware, budgets)
    predicted, load, shape = found.predicted, model.load, model.shape
    step_us = predicted.step_us + model.update_us(load.parallel)
    flops = shape.model_flops(load.seq, load.batch) / load.parallel
    overruns = found.overruns
    wanted_bytes = sum(trace.resident_bytes.values()) + trace.transient_peak_bytes + predicted.peak_device_bytes
    if limits.device is None and not overruns and wanted_bytes > memory_bytes:
        overruns = (Overrun("device memory", wanted_bytes, memory_bytes),)
    return Simulation(
        model=shape, machine=machine.name, seq=load.seq, batch=load.batch, gpus=load.parallel, policy=policy,
        step_us=step_us, mfu=flops / model.rates.peak_flops / (step_us / 1e6), exposed_us=predicted.stall_us,
        remade_us=predicted.remade_us,
        peak_bytes={"device": predicted.peak_device_bytes, "host": predicted.peak_host_bytes,
                    "file": predicted.peak_file_bytes},
        alpha=sum(plan.alphas.values()) / len(plan.alphas) if plan.alphas else None,
        overruns=overruns, predicted=predicted, plan=plan, trace=trace, hardware=hardware, budgets=budgets,
    )  # fmt: skip


def _whole_rows(alpha: float, row_count: int) -> float:
    """The share that is rounded up to no more rows than alpha is of them."""
    rows = int(alpha * row_count)
    return 1.0 if rows >= row_count else max(0.0, rows - 0.5) / row_count


def _budgets(limits: Limits, memory_bytes: int, trace: StepTrace, is_host_memory: bool) -> Budgets:
    """What saved tensors may take: transients are in a device budget, too."""
    device = parse_budget(limits.device, lambda: memory_bytes)
    if device is None:
        device = memory_bytes - sum(trace.resident_bytes.values())
    host = parse_budget(limits.host, _no_share)
    file = parse_budget(limits.file, _no_share)
    return Budgets(max(0, device - trace.transient_peak_bytes), None if is_host_memory else host, file)


def _out_rate(hardware: Hardware) -> float:
    """Of the first tier below the device. Raises InputError for a machine without any."""
    link = hardware.host or hardware.file
    if link is None:
        raise InputError("simulate: the machine has neither host nor file to swap to; give it file rates")
    return link.out_rate


def _no_share() -> int:
    raise InputError("simulate: a percentage of a host or disk that is not here; give bytes")
