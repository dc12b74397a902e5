"""The plans of one session: records steps, plans from them, and tells each forward which plan it may follow.

A plan is made after the first step, after a shape has come twice, once more from a step that was warm, and when steps
go on taking another time than predicted.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from memsys.activations.clock import HostClock, clock_for
from memsys.activations.layers import LayerPlace
from memsys.activations.order import ForwardRecord, Signature
from memsys.activations.planned import PlannedForward
from memsys.activations.policy import Policy, Profile, away_from
from memsys.activations.recipes import RecipeBook
from memsys.activations.recorder import MovedBytes, StepRecorder
from memsys.activations.rows.book import RowBook
from memsys.activations.rows.offer import CallFacts
from memsys.activations.stats import OffloadStats, PlanStats
from memsys.errors import BudgetError
from memsys.planning.plan import Plan
from memsys.planning.swap_plan import Budgets, Choice, Hardware, Prediction, SwapPlan
from memsys.planning.trace import StepTrace

logger = logging.getLogger("memsys")

PLAN_LIMIT = 64  # shapes with a plan; the one not used for longest goes
_PENDING_LIMIT = 16  # forwards whose backward has not come
# Steps that take so many times longer, or shorter, than predicted, so often in a row, are planned anew; each time it
# takes twice as many, so that a step that no trace predicts is not planned for ever.
DRIFT_FACTOR, DRIFT_COUNT = 1.5, 5
_TIMES_KEPT = 9


@dataclass
class PlanOptions:
    """What plans are made with. hardware is asked for when something must move."""

    device: torch.device
    budgets: Budgets
    min_bytes: int
    hardware: Callable[[], Hardware]


class Books(NamedTuple):
    """What a session knows of making things again, by one operation and by rows, and of the model's layers."""

    recipes: RecipeBook | None
    rows: RowBook | None
    place: LayerPlace

    def want_rows(self, is_wanted: bool, is_measured: bool) -> None:
        """Whether calls of blocks are tried, and timed: it takes time where a block is seen first."""
        if self.rows is not None:
            self.rows.is_wanted, self.rows.is_measured = is_wanted, is_measured

    @property
    def calls(self) -> Sequence[CallFacts]:
        """Those of this thread's last forward."""
        return () if self.rows is None else tuple(self.rows.facts)


@dataclass
class _Entry:
    plan: Plan | None = None  # being made
    is_cold: bool = False  # from a first step, which takes longer than others
    times_us: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES_KEPT))
    off_count: int = 0
    drift_count: int = DRIFT_COUNT

    def note(self, step_us: float) -> None:
        self.times_us.append(step_us)
        predicted = self.plan.swap.predicted
        if predicted is not None and predicted.step_us > 0:
            ratio = step_us / predicted.step_us
            self.off_count = 0 if 1 / DRIFT_FACTOR < ratio < DRIFT_FACTOR else self.off_count + 1

    @property
    def wants_planning(self) -> bool:
        return (self.is_cold and len(self.times_us) > 1) or self.off_count >= self.drift_count


@dataclass
class RecordedStep:
    """A forward that has ended, whose backward perhaps has."""

    recorder: StepRecorder
    policy: PlannedForward | None  # None: the first step
    resident_bytes: Mapping[str, int]
    calls: Sequence[CallFacts]


class Planner:
    """The plans of one session. Thread-safe; plans are made in the thread that begins a forward."""

    def __init__(self, options: PlanOptions, books: Books, counts: OffloadStats,
                 plan: Plan | None = None) -> None:  # fmt: skip
        self._options = options
        self._books = books
        self._counts = counts
        self._can_plan = options.budgets.device_bytes is not None
        self._away = away_from(options.device.type)
        self._clock = clock_for(options.device)
        self._entries: dict[Signature, _Entry] = {}
        self._latest: _Entry | None = None
        self._pending: list[RecordedStep] = []
        self._refused: set[Signature] = set()
        self._unplanned: dict[Signature, None] = {}  # shapes that came once, in that order
        self._lock = threading.Lock()
        if plan is not None:
            self._add(_Entry(plan))

    # Around a forward ----------------------------------------------------------------------------------------------

    @contextmanager
    def forward(self, model: torch.nn.Module | None, record: ForwardRecord, otherwise: Policy,
                ) -> Iterator[Policy]:  # fmt: skip
        """The policy for one forward; `otherwise` decides where there is no plan."""
        self._learn()
        with self._lock:
            plans = [entry.plan for entry in reversed(self._entries.values())]
            is_light = bool(plans) and not self._unplanned and not isinstance(self._clock, HostClock)
        recorder = record.recorder = StepRecorder(self._clock, self._books.place, self._moved, is_light)
        is_divided = any(Choice.ROWS in plan.swap.choices for plan in plans)
        self._books.want_rows(is_divided or not plans or bool(self._unplanned), not is_light)
        policy = None  # the first step
        if plans or self._refused:
            policy = PlannedForward(plans, otherwise, self._away, lambda: self._counts.kept_bytes)
        yield policy or Profile(self._away, self._options.budgets.device_bytes)
        recorder.end_forward()
        with self._lock:
            self._pending.append(RecordedStep(recorder, policy, resident_bytes(model), self._books.calls))
            del self._pending[:-_PENDING_LIMIT]

    def _moved(self) -> MovedBytes:
        return MovedBytes(self._counts.out_bytes, self._counts.in_bytes)

    def _learn(self) -> None:
        """Takes the steps that have ended since, and plans for those that want it."""
        with self._lock:
            ended = [step for step in self._pending if step.recorder.has_ended]
            self._pending = [step for step in self._pending if not step.recorder.has_ended]
            wanted = [self._note(step) for step in ended if step.recorder.sizes]
        for step, entry in filter(None, wanted):
            try:
                entry.plan = self.plan_for(step)
            except BudgetError as error:
                logger.warning("this shape of step follows no plan: %s", error)
                self._refused.add(step.recorder.sizes)
                continue
            with self._lock:
                self._add(entry)

    def _note(self, step: RecordedStep) -> tuple[RecordedStep, _Entry] | None:
        """The step, with what will hold its plan, if one is wanted."""
        signature = step.recorder.sizes
        is_planned = step.policy is not None and step.policy.plan is not None
        entry = self._entries.pop(signature, None) if is_planned else None
        if entry is None:
            return self._meet(signature, step) if self._can_plan else None
        self._latest = self._entries[signature] = entry
        entry.note(step.recorder.step_us())
        if not entry.wants_planning or not self._can_plan or not isinstance(self._clock, HostClock):
            return None
        return step, _Entry(drift_count=entry.drift_count * (1 if entry.is_cold else 2))

    def _meet(self, signature: Signature, step: RecordedStep) -> tuple[RecordedStep, _Entry] | None:
        """A step without a plan: the first is planned for at once, another shape when it comes again."""
        if signature in self._refused:
            return None
        if self._entries and signature not in self._unplanned:
            self._unplanned[signature] = None
            if len(self._unplanned) > PLAN_LIMIT:
                self._unplanned.pop(next(iter(self._unplanned)))
            return None
        self._unplanned.pop(signature, None)
        return step, _Entry(is_cold=not self._entries)

    # Planning ------------------------------------------------------------------------------------------------------

    def take_last(self) -> RecordedStep | None:
        """The last step that has ended, without a plan being made from it."""
        with self._lock:
            ended = [step for step in self._pending if step.recorder.has_ended]
            self._pending.clear()
            return ended[-1] if ended else None

    def follow(self, plan: Plan) -> None:
        """Steps of the plan's shape follow it from now on."""
        with self._lock:
            self._add(_Entry(plan))

    def plan_for(self, step: RecordedStep) -> Plan:
        """The plan for the step that was recorded."""
        recorder, resident = step.recorder, step.resident_bytes
        options = self._options
        is_moving = sum(recorder.sizes) > (options.budgets.device_bytes or 0)
        hardware = options.hardware() if is_moving else Hardware(file=None)
        link = hardware.host if options.device.type == "cuda" else hardware.file
        trace = recorder.trace(str(options.device), self._books.recipes, resident, link, step.calls)
        return Plan(trace, make_swap(trace, hardware, options.budgets), options.budgets, hardware, options.min_bytes)

    def _add(self, entry: _Entry) -> None:
        self._entries[entry.plan.trace.signature] = entry
        while len(self._entries) > PLAN_LIMIT:
            self._entries.pop(next(iter(self._entries)))
        declined = entry.plan.swap.declined
        if declined is not None and (self._latest is None or self._latest.plan.swap.declined is None):
            logger.warning("nothing is offloaded: %s", declined)
        self._latest = entry

    def latest(self) -> Plan | None:
        """The plan that was made, or followed, last."""
        with self._lock:
            return None if self._latest is None else self._latest.plan

    def stats(self) -> PlanStats | None:
        """About the plan that was followed last; None before there is one."""
        with self._lock:
            entry, plan_count = self._latest, len(self._entries)
            times_us = [] if entry is None else list(entry.times_us)
        if entry is None:
            return None
        swap = entry.plan.swap
        return PlanStats(
            predicted=swap.predicted,
            measured_step_us=statistics.median(times_us) if times_us else None,
            declined=swap.declined,
            solver=swap.solver,
            counts={choice.value: count for choice, count in Counter(swap.choices).items()},
            plan_count=plan_count,
        )


def make_swap(trace: StepTrace, hardware: Hardware, budgets: Budgets) -> SwapPlan:
    """The choices for a step. Where all of it fits there is nothing to solve: moving could only lose."""
    if trace.saved_bytes <= budgets.device_bytes:
        return whole_fits(trace)
    from memsys.planning.solve import solve

    return solve(trace, hardware, budgets)


def whole_fits(trace: StepTrace) -> SwapPlan:
    """All stays."""
    begin = time.perf_counter()
    forward_us, backward_us, bytes_ = trace.forward_us, trace.backward_us, trace.saved_bytes
    predicted = Prediction(
        step_us=forward_us + backward_us, forward_us=forward_us, backward_us=backward_us, stall_us=0.0, remade_us=0.0,
        peak_device_bytes=bytes_, peak_host_bytes=0, peak_file_bytes=0, out_bytes=0, in_bytes=0,
    )  # fmt: skip
    return SwapPlan(
        choices=(Choice.KEEP,) * len(trace.spans), predicted=predicted, bound_us=predicted.step_us, solver="none",
        solve_us=(time.perf_counter() - begin) * 1e6,
        declined=f"the {bytes_} bytes that a step saves fit the device budget, and moving them would only take time",
    )  # fmt: skip


def resident_bytes(model: torch.nn.Module | None) -> dict[str, int]:
    """What no plan moves."""
    if model is None:
        return {}
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.nbytes for parameter in parameters),
        "gradients": sum(parameter.nbytes for parameter in parameters if parameter.requires_grad),
        "buffers": sum(buffer.nbytes for buffer in model.buffers()),
    }
