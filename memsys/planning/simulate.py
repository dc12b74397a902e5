"""`memsys.simulate`: the step of a model that need not exist on a machine that need not be here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsys.errors import InputError

if TYPE_CHECKING:
    from memsys.planning.hardware import Corner, Machine
    from memsys.planning.shapes import ModelShape
    from memsys.planning.simulation import Simulation


def simulate(
    model_shape: str | ModelShape,
    hardware: str | Machine,
    seq: int,
    gpus: int = 1,
    policy: str = "plan",
    *,
    batch: int = 1,
    device_budget: int | str | None = None,
    host_budget: int | str | None = None,
    disk_budget: int | str | None = None,
    alpha: float | None = None,
    corner: Corner | None = None,
) -> Simulation:
    """Steps one training step of a model on a machine, without either.

    Args:
        model_shape: a name ("llama3-8b", see memsys.planning.shapes.SHAPES) or a ModelShape.
        hardware: a GPU's name ("h200", see memsys.planning.gpus.MACHINES) or a Machine, measured perhaps.
        seq, batch: positions in a sequence, and sequences in a step.
        gpus: that share every layer by tensor and sequence parallelism (Megatron-LM's), and all parameters.
        policy: "plan" (the planner's), "none", "all", "inputs", "checkpoint", "checkpoint+host", "tokenwise" (MEMO's).
        device_budget: bytes of one GPU for saved tensors, memsys's buffers and transients; default: what parameters,
            gradients and optimizer leave of its memory.
        host_budget, disk_budget: bytes of one GPU's part below it; default: no bound.
        alpha: for "tokenwise": the share of rows to swap; default: the closed form of the paper.
        corner: which end of the uncertainty of every figure; default: the middle.

    Raises:
        InputError: a name that is none, or a count that makes no sense.

    Source: "MEMO" (Zhao et al., SIGMOD 2025) for the policies and what a layer saves.
    """
    # Imported here, because `import memsys` must stay quick for those who simulate nothing.
    from memsys.planning.compute import ComputeModel, Load
    from memsys.planning.gpus import find_machine
    from memsys.planning.hardware import Corner
    from memsys.planning.policies import NAMES
    from memsys.planning.shapes import find_shape
    from memsys.planning.simulation import Limits, simulate_model

    shape, machine = find_shape(model_shape), find_machine(hardware)
    if min(seq, gpus, batch) < 1:
        raise InputError(f"simulate: wanted at least 1 of each, found {seq=}, {gpus=}, {batch=}")
    if policy not in NAMES:
        raise InputError(f"simulate: policy {policy!r} is none of {', '.join(NAMES)}")
    model = ComputeModel(shape, machine.rates(corner or Corner.MIDDLE), Load(seq, batch, gpus))
    limits = Limits(device_budget, host_budget, disk_budget)
    return simulate_model(model, machine, policy, limits, alpha)
