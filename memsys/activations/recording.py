"""Records what a session does over some steps: the core logs transfers and levels, this adds forward, backward and
waits, and puts both together as a Timeline when the record ends.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from memsys import _C, _tensor
from memsys.report.timeline import COMPUTE, REMAKE, STALL, Plan, Slice, Timeline, in_service

if TYPE_CHECKING:
    from memsys.activations.span import SavedSpan

# Of transfers and of levels each, the newest: a step has thousands of the first at most, and 5 MiB hold these.
CAPACITY = 1 << 16
_TIERS = {_C.Tier.device: "device", _C.Tier.pinned: "host", _C.Tier.pageable: "host", _C.Tier.file: "file"}


class Recording:
    """What is under way while a session is being recorded. Any thread may tell it something."""

    def __init__(self, planned: Plan | None) -> None:
        self.timeline = Timeline(planned=planned)
        self._store: object = None
        self._begin_us: int | None = None
        self._backward_begin_us: int | None = None
        self._lock = threading.Lock()
        self._slices: list[Slice] = []
        self._levels: dict[str, list[tuple[float, int]]] = {}
        self._spans: dict[int, int] = {}  # by block: the place of the span that left as this block

    def attach(self, store: object) -> None:
        """Begins to log what a store does; the session may come to have another store later."""
        if self._store is not None:
            self._collect()
        self._store = store
        store.start_log(CAPACITY)
        if self._begin_us is None:
            self._begin_us = store.now_us()

    def now_us(self) -> int:
        return self._store.now_us()

    def end_forward(self, begin_us: int) -> None:
        self._add(COMPUTE, "forward", begin_us, self.now_us())

    def begin_backward(self, begin_us: int | None = None) -> None:
        """Backward wants its first tensor (or has begun to wait for it)."""
        if self._backward_begin_us is None and _tensor.in_backward():
            self._backward_begin_us = self.now_us() if begin_us is None else begin_us
            _tensor.at_end_of_backward(self.end_backward)

    def end_backward(self) -> None:
        begin_us, self._backward_begin_us = self._backward_begin_us, None
        if begin_us is not None:
            self._add(COMPUTE, "backward", begin_us, self.now_us())

    def note_stall(self, begin_us: int, end_us: int) -> None:
        """The training thread has waited."""
        self.begin_backward(begin_us)
        self._add(STALL, "waits", begin_us, end_us)

    def note_remade(self, begin_us: int, span: SavedSpan) -> None:
        """A span was computed again (on an accelerator: the host has issued it)."""
        self.begin_backward(begin_us)
        self._add(REMAKE, f"tensor {span.index} remade", begin_us, self.now_us(), span.index)

    def note_sent(self, span: SavedSpan) -> None:
        self._spans[span.block.id] = span.index

    def finish(self) -> None:
        """Fills the timeline."""
        if self._store is None:
            return  # no forward ran
        end_us = self.now_us()
        if self._backward_begin_us is not None:
            self.end_backward()  # it failed
        self._collect()
        lanes = {slice_.lane: [] for slice_ in self._slices}
        for slice_ in self._slices:
            lanes[slice_.lane].append(slice_)
        timeline = self.timeline
        timeline.slices = tuple(slice_ for lane in lanes.values() for slice_ in in_service(lane))
        timeline.levels = self._levels
        timeline.duration_us = float(end_us - self._begin_us)
        budgets = (self._store.device_budget, self._store.host_budget, self._store.disk_budget)
        limits = (None if budget.limit_bytes < 0 else budget.limit_bytes for budget in budgets)
        timeline.limits = dict(zip(("device", "host", "file"), limits, strict=True))

    def _add(self, lane: str, name: str, begin_us: int, end_us: int, span: int = -1) -> None:
        slice_ = Slice(lane, self._since_begin(begin_us), self._since_begin(end_us), span=span, name=name)
        with self._lock:
            self._slices.append(slice_)

    def _since_begin(self, at_us: int) -> float:
        return float(at_us - self._begin_us)

    def _collect(self) -> None:
        store = self._store
        store.stop_log()
        for entry in store.logged_transfers():
            span = self._spans.get(entry.block_id, -1)
            direction = "out" if entry.direction == _C.Direction.out else "in"
            lane = f"{_TIERS[entry.tier]} {direction}"
            self._slices.append(Slice(
                lane, self._since_begin(entry.begin_us), self._since_begin(entry.end_us), entry.bytes, span,
                name=f"tensor {span} {direction}" if span >= 0 else direction,
                touches_device=entry.touches_device, is_failed=entry.is_failed,
            ))  # fmt: skip
        for level in store.logged_levels():
            changes = self._levels.setdefault(_TIERS[level.tier], [])
            changes.append((self._since_begin(level.at_us), level.used_bytes))
        self.timeline.dropped_count += store.log_dropped_count
        self._spans.clear()
