"""An offload session: the options as the user gave them, the store they become, and one forward at a time.

Sessions make nothing (no file, no thread, no memory) until the first tensor is saved under them.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memsys import _C
from memsys.activations.claims import ActivationClaim, AliasTable, ParameterClaim
from memsys.activations.dispatcher import Claimant, Dispatcher
from memsys.activations.heap import HeapTrimmer
from memsys.activations.layers import LayerMarks, LayerPlace
from memsys.activations.limits import parse_limits, usable_spill_folder
from memsys.activations.mover import Mover
from memsys.activations.order import ForwardRecord, OrderBook
from memsys.activations.parameters import ParameterFilter
from memsys.activations.parking import ParkingLot
from memsys.activations.policy import KeepLimit, Measured, Policy, make_policy
from memsys.activations.recipes import RecipeBook
from memsys.activations.stats import OffloadStats
from memsys.errors import InputError, UnsupportedError
from memsys.runtimes import runtime_for

if TYPE_CHECKING:
    from memsys.activations.planner import Planner
    from memsys.activations.recording import Recording
    from memsys.activations.rows.book import RowBook
    from memsys.planning.plan import Plan
    from memsys.planning.swap_plan import Hardware
    from memsys.report.timeline import Timeline

logger = logging.getLogger("memsys")

# Below this a transfer costs more than the memory is worth; the many small tensors of a model are few bytes.
DEFAULT_MIN_BYTES = 256 << 10
# Of what a forward saves, what auto keeps and memsys's buffers take together where there is no budget (as it is, and
# with return_memory). More would be faster, and save less.
DEFAULT_KEEP_SHARE, RETURNING_KEEP_SHARE = 0.25, 0.09


@dataclass
class OffloadOptions:
    """The keywords of memsys.offload, as given."""

    device_budget: int | str | None = None
    host_budget: int | str | None = None
    disk_budget: int | str | None = None
    spill_dir: str | os.PathLike | None = None
    policy: str | Policy = "auto"
    plan: object = None
    min_bytes: int | None = None
    exclude: tuple[str, ...] = ()
    return_memory: bool = False
    verify: bool = False


class Session:
    """One use of offload; `model` is None for the scope form. Re-enterable, and usable from several threads."""

    def __init__(self, options: OffloadOptions, model: torch.nn.Module | None = None, may_divide: bool = False) -> None:
        """may_divide: plans may divide tensors by rows, after which gradients agree but for rounding."""
        self.options = options
        self._counts = OffloadStats()
        self._lock = threading.Lock()
        self._mover: Mover | None = None
        self._store: object = None
        self._policy: Policy | None = None
        self.planner: Planner | None = None
        self._device: torch.device | None = None
        self._pid = os.getpid()
        self._has_run = False
        self._book = OrderBook()
        self._aliases = AliasTable()
        self._recipes = RecipeBook(options.verify) if options.policy == "auto" or callable(options.policy) else None
        self._parameters = ParameterFilter()
        self._last_record: weakref.ref | None = None
        self._parking: ParkingLot | None = None
        self._trimmer: HeapTrimmer | None = None
        self._recording: Recording | None = None
        self._timeline: Timeline | None = None
        self._excluding = threading.local()
        self._hooks: list[object] = []
        self._check_options()
        self._marks = (
            LayerPlace(model)
            if self._may_plan()
            else LayerMarks(model if options.policy == "inputs" or callable(options.policy) else None)
        )
        self._may_divide = may_divide or (self._plan is not None and self._plan.has_rows)
        self.rows = self._make_rows(model) if callable(options.policy) or self._may_divide else None
        if options.policy == "inputs" and model is not None and self._marks.layer_count == 0:
            warnings.warn("policy='inputs' found no list of layers in the model: only attention outputs will move; "
                          "use policy='auto'", stacklevel=4)  # fmt: skip
        if model is not None:
            self._exclude(model)

    def _check_options(self) -> None:
        options = self.options
        self._plan = self._given_plan()
        if options.min_bytes is not None and (not isinstance(options.min_bytes, int) or options.min_bytes < 0):
            raise InputError(f"min_bytes: wanted a count of bytes, found {options.min_bytes!r}; for instance 262144")
        make_policy(options.policy, "cpu")
        self.spill_dir = usable_spill_folder(options.spill_dir)
        self._limits = parse_limits(*self._budgets(), self.spill_dir)

    def _budgets(self) -> tuple[int | str | None, ...]:
        """Those given; else the plan's."""
        given = (self.options.device_budget, self.options.host_budget, self.options.disk_budget)
        if self._plan is None:
            return given
        planned = self._plan.budgets.device_bytes, self._plan.budgets.host_bytes, self._plan.budgets.file_bytes
        return tuple(own if own is not None else other for own, other in zip(given, planned, strict=True))

    def _exclude(self, model: torch.nn.Module) -> None:
        for name, module in model.named_modules():
            if name and any(fnmatch.fnmatch(name, pattern) for pattern in self.options.exclude):
                self._hooks.append(module.register_forward_pre_hook(lambda *_: self._shift_excluded(1)))
                self._hooks.append(module.register_forward_hook(lambda *_: self._shift_excluded(-1), always_call=True))

    def _shift_excluded(self, by: int) -> None:
        self._excluding.depth = getattr(self._excluding, "depth", 0) + by

    def _is_excluded(self) -> bool:
        return getattr(self._excluding, "depth", 0) > 0

    def _prepare(self, device: torch.device) -> None:
        """Makes the store, for the device of the first forward."""
        with self._lock:
            if os.getpid() != self._pid:
                raise UnsupportedError("this process was forked from the one that called memsys.offload; call "
                                       "memsys.offload in the child, or start it by spawn")  # fmt: skip
            if self._mover is not None and self._device == device:
                return
            # Another device than before: spans that are away keep the mover that moved them.
            runtime, backend = runtime_for(device)
            self._store = _C.TensorStore(
                runtime=runtime, spill_folder=self.spill_dir, check_host_copies=self.options.verify, **self._limits
            )
            self._parking = self._trimmer = None
            if device.type == "cpu" and runtime.is_host_addressable:
                self._parking = ParkingLot()
                self._trimmer = HeapTrimmer() if self.options.return_memory else None
            mover = Mover(runtime, backend, self._store, self._counts, self._parking, self._trimmer)
            self._policy = make_policy(self.options.policy, device.type, self._keep_limit(mover))
            self.planner = self._make_planner(device, mover)
            self._device = device
            self._mover = mover
            self._tell_recording()

    def start_recording(self, recording: Recording) -> None:
        """Has `recording` told of what happens from now on."""
        if self._recording is not None:
            raise InputError("record_timeline: this model is being recorded already; end the other context first")
        self._recording = recording
        self._tell_recording()

    def _tell_recording(self) -> None:
        if self._recording is not None and self._mover is not None:
            self._recording.attach(self._store)
            self._mover.recording = self._recording

    def end_recording(self) -> None:
        """Waits until nothing is under way, and completes the record."""
        recording, self._recording = self._recording, None
        self.drain()
        if self._mover is not None:
            self._mover.recording = None
        recording.finish()
        plan = None if self.planner is None else self.planner.latest()
        if recording.timeline.planned is None and plan is not None:
            recording.timeline.planned = plan.schedule()
        self._timeline = recording.timeline

    def _keep_limit(self, mover: Mover) -> KeepLimit:
        limit = self._store.device_budget.limit_bytes
        share = RETURNING_KEEP_SHARE if self.options.return_memory else DEFAULT_KEEP_SHARE
        budget = None if limit < 0 else limit
        # Without a budget, beside the windows: what is being made again, and what it is made from.
        windows = 3 if budget is None else 2
        return KeepLimit(budget, share, windows * mover.window_bytes, lambda: self._counts.kept_bytes)

    # What plans is imported where it is used: most who import memsys don't plan.

    def _given_plan(self) -> Plan | None:
        if self.options.plan is None:
            return None
        from memsys.activations.planned import given_plan

        return given_plan(self.options.plan, self.options.policy)

    def _make_rows(self, model: torch.nn.Module | None) -> RowBook:
        from memsys.activations.rows.book import RowBook

        return RowBook(model)

    def _may_plan(self) -> bool:
        return self.options.policy == "auto" and (self._plan is not None or self.options.device_budget is not None)

    def _make_planner(self, device: torch.device, mover: Mover) -> Planner | None:
        """Within a device budget auto plans; without one it follows its rule, or the plan that was given."""
        limit = self._store.device_budget.limit_bytes
        is_simulated = device.type == "cpu" and not mover.is_direct
        if not self._may_plan() or is_simulated:
            return None
        from memsys.activations.planner import Books, Planner, PlanOptions
        from memsys.planning.swap_plan import Budgets

        budgets = Budgets(
            None if limit < 0 else limit, self._store.host_budget.limit_bytes, self._store.disk_budget.limit_bytes
        )

        def hardware() -> Hardware:
            from memsys.activations import calibrate  # which itself runs a session

            return calibrate.measured_hardware(device, self.spill_dir, mover.window_bytes)

        options = PlanOptions(device, budgets, self._min_bytes(), hardware)
        return Planner(options, Books(self._recipes, self.rows, self._marks), self._counts, self._plan)

    @contextmanager
    def forward(self, model: torch.nn.Module | None) -> Iterator[None]:
        """The scope of one forward pass: what autograd saves inside is offloaded."""
        record = self.new_record(_device_of(model))
        if model is not None:
            self._parameters.refresh(model)
            if self._recipes is not None:
                self._recipes.refresh(model)
        self._learn_from_last(record)
        recording = self._recording
        begin_us = recording.now_us() if recording is not None else 0
        planned = nullcontext(self._policy)
        if self.planner is not None:
            planned = self.planner.forward(model, record, self._policy)
        with planned as policy, Dispatcher(self.claimants(record, policy)):
            yield
        if recording is not None:
            recording.end_forward(begin_us)
        if isinstance(self._policy, Measured):
            self._policy.learn(record.sizes, record.remade)
        self._say_if_idle(record)

    def _begin_backward(self) -> None:
        if self._recording is not None:
            self._recording.begin_backward()
        if self._parking is not None:
            self._parking.begin_backward()
        if self._trimmer is not None:
            self._trimmer.trim()

    def _say_if_idle(self, record: ForwardRecord) -> None:
        """A mode that does nothing says so, once."""
        if not self._has_run and len(record) == 0:
            logger.warning(
                "nothing was offloaded in the first forward: no saved tensor of at least %d bytes that is not a "
                "parameter; lower min_bytes, or do without memsys here",
                self._min_bytes(),
            )
        self._has_run = True

    def new_record(self, device: torch.device) -> ForwardRecord:
        """A record for a forward on `device`; the first makes the store."""
        self._prepare(device)
        record = ForwardRecord(self._mover, self._book)
        if self._parking is not None:
            self._parking.begin_forward()
        record.on_backward = self._begin_backward
        return record

    def claimants(self, record: ForwardRecord, policy: Policy | None = None) -> tuple[Claimant, ...]:
        """What answers for the saved tensors of the forward that `record` is about; by default the session's own
        policy."""
        self._marks.forget_dead()
        claim = ActivationClaim(
            mover=self._mover, policy=policy or self._policy, device=self._device, min_bytes=self._min_bytes(),
            marks=self._marks, aliases=self._aliases, recipes=self._recipes, stats=self._counts, record=record,
            is_excluded=self._is_excluded, rows=self.rows,
        )  # fmt: skip
        counters = () if self.rows is None else self.rows.begin_forward(record.recorder)
        return *counters, ParameterClaim(self._parameters, self._counts, self._min_bytes()), claim

    def _learn_from_last(self, record: ForwardRecord) -> None:
        last = self._last_record() if self._last_record is not None else None
        if last is not None:
            last.end()
        self._last_record = weakref.ref(record)

    def _min_bytes(self) -> int:
        if self.options.min_bytes is not None:
            return self.options.min_bytes
        return DEFAULT_MIN_BYTES if self._plan is None else self._plan.min_bytes

    def stats(self) -> OffloadStats:
        """A copy of the counts, with the budgets' peaks."""
        counts = OffloadStats(**self._counts.as_dict())
        counts._timeline = self._timeline
        if self._store is not None:
            counts.peak_device_bytes = self._store.device_budget.peak_bytes
            counts.peak_host_bytes = self._store.host_budget.peak_bytes
            counts.peak_file_bytes = self._store.disk_budget.peak_bytes
            store = self._store.stats()
            counts.plan = None if self.planner is None else self.planner.stats()
            counts.in_flight_bytes, counts.spill_used_bytes = store["in_flight_bytes"], store["spill_used_bytes"]
        return counts

    def drain(self) -> None:
        """Waits until nothing is under way, and lets go of sources."""
        if self._mover is not None:
            self._store.drain()
            self._mover.release_sources()

    def is_gone(self, source: torch.UntypedStorage | None) -> bool:
        """Whether nothing of a source is in memory: for tests that watch one through a weak reference."""
        return source is None or (self._parking is not None and self._parking.is_parked(source))

    def close(self) -> None:
        """Undoes hooks and ends threads; graphs made before go on working."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._marks.release()
        if self.rows is not None:
            self.rows.release()
        self._parameters.release()
        if self._mover is not None:
            self._mover.close()
        if self._parking is not None:
            self._parking.begin_forward()
        if self._trimmer is not None:
            self._trimmer.trim()


def _device_of(model: torch.nn.Module | None) -> torch.device:
    parameter = next(model.parameters(), None) if model is not None else None
    if parameter is not None and parameter.device.type != "meta":
        return parameter.device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else torch.device("cpu")
