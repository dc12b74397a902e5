"""memsys.plan: what a step within a budget would keep, move and compute again, and how long it would take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from memsys.activations.offload import function_of, offload, restore
from memsys.activations.session import OffloadOptions, Session
from memsys.activations.trial import TrialStep
from memsys.errors import BudgetError, InputError

if TYPE_CHECKING:
    from memsys.activations.planner import Planner
    from memsys.planning.plan import Plan

# A step that takes longer is not run again, only to be recorded with warm memory and as it was planned.
_LONGEST_FIRST_S = 10.0
# Following a plan, the second step is the first whose memory is warm.
_TRIED_STEPS = 2


def plan(
    model: torch.nn.Module,
    args: tuple = (),
    kwargs: dict | None = None,
    loss: Callable | None = None,
    *,
    device_budget: int | str,
    host_budget: int | str | None = None,
    disk_budget: int | str | None = None,
    spill_dir: str | os.PathLike | None = None,
    min_bytes: int | None = None,
    exclude: tuple[str, ...] = (),
    rows: bool = False,
) -> Plan:
    """Runs a step of the model with everything moved, so that one layer's needs are enough room, and plans from it.

        plan = memsys.plan(model, (tokens, targets), device_budget="2GiB")
        print(plan)
        memsys.offload(model, plan=plan)        # or plan.save(path) and memsys.offload(model, plan=path)

    Args:
        model: on the device it will train on, offloaded or not; gradients, buffers and the random state are as before
            afterwards.
        args, kwargs: of the model's forward. loss: output -> scalar; by default the output's `loss`, or the sum of all
            floating outputs.
        device_budget, host_budget, disk_budget, spill_dir, min_bytes, exclude: as for memsys.offload.
        rows: the plan may also divide tensors by the positions of the sequence, move the first of them and compute
            the others again, where a trial shows that a block allows it. Gradients then agree with those of the plain
            model but for rounding; without it they do to the last bit.

    Returns the plan for steps of this very shape; memsys.offload plans others as they come, within the same budgets.
    The first plan of a process also measures the links, for some seconds.

    Raises:
        InputError: (a ValueError) for options that make no sense, or a model that saves nothing of `min_bytes`.
        BudgetError: (a MemoryError) where a step does not fit even with everything moved.

    After MEMO, "Fine-grained Tensor Management for Ultra-long Context LLM Training" (SIGMOD'25), whose job profiler
    and planner this makes general.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"plan: wanted a torch.nn.Module, found {type(model).__name__}; pass the module that trains")
    if device_budget is None:
        raise InputError("plan: device_budget is None; without a bound there is nothing to plan; for instance '2GiB'")
    trial = TrialStep("plan", model, args, kwargs, loss)
    options = OffloadOptions(device_budget, host_budget, disk_budget, spill_dir, min_bytes=min_bytes,
                             exclude=tuple(exclude))  # fmt: skip
    with _session_of(model, options, rows) as session:
        return _planned(session, trial)


def _planned(session: Session, trial: TrialStep) -> Plan:
    begin = time.perf_counter()
    trial.run()
    planner = session.planner  # there is one once a step has run
    step = planner.take_last()
    is_short = time.perf_counter() - begin < _LONGEST_FIRST_S
    if is_short:
        trial.run()
        step = planner.take_last()
    if step is None or not step.recorder.sizes:
        raise InputError("plan: the step saved no tensor of at least min_bytes that is not a parameter; lower "
                         "min_bytes, or do without memsys here")  # fmt: skip
    made = planner.plan_for(step)
    return _tried(made, planner, trial) if is_short and made.swap.declined is None else made


def _tried(made: Plan, planner: Planner, trial: TrialStep) -> Plan:
    """Plans again from steps that follow the plan: where all moves, compute takes longer than it will."""
    planner.follow(made)
    try:
        for _ in range(_TRIED_STEPS):
            trial.run()
    except BudgetError:  # the step that moved everything fitted, so what was planned from it stands
        return made
    step = planner.take_last()
    return made if step is None or step.policy.plan is not made else planner.plan_for(step)


@contextmanager
def _session_of(model: torch.nn.Module, options: OffloadOptions, rows: bool) -> Iterator[Session]:
    """A session of its own for the model, for the time being; one that it has meanwhile waits."""
    function = function_of(model)
    is_ours = function is None
    if is_ours:
        offload(model, policy="all", spill_dir=options.spill_dir)
        function = function_of(model)
    before, session = function.memsys_session, Session(options, model, rows)
    function.memsys_session = session
    try:
        yield session
    finally:
        function.memsys_session = before
        session.close()
        if is_ours:
            restore(model)
