"""The spans that stay on the device, in the order in which they were kept: backward wants the first of them last, so
that it is the first to go where the room is needed after all."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from memsys import _tensor
from memsys.errors import BudgetError, SpillError

if TYPE_CHECKING:
    from memsys.activations.mover import Mover
    from memsys.activations.span import SavedSpan


class KeptSpans:
    """Weak: the graph owns the spans. Thread-safe."""

    def __init__(self) -> None:
        self._spans: deque[weakref.ref[SavedSpan]] = deque()
        self._lock = threading.Lock()

    def add(self, span: SavedSpan) -> None:
        with self._lock:
            while self._spans and self._spans[0]() is None:
                self._spans.popleft()
            self._spans.append(weakref.ref(span))

    def make_room(self, mover: Mover, bytes_: int) -> None:
        """Sends kept spans away until there is room for what can't stay: several forwards before one backward keep
        more than each of them counted with."""
        budget = mover.store.device_budget
        while budget.left_bytes < bytes_ and self.send_first(mover):
            while budget.left_bytes < bytes_ and mover.has_departures:
                mover.wait_for_transfer()

    def send_first(self, mover: Mover) -> bool:
        """Sends away the span that was kept first; False if there is none, or no room below."""
        span = self._take() if mover.away is not None else None
        if span is None:
            return False
        mover.end_keep(span)
        address = _tensor.address_of(span.source) + span.begin_bytes
        try:
            span.block = mover.store.swap_out(address, span.bytes, span.stream, mover.away)
        except (BudgetError, SpillError):
            mover.keep(span)
            return False
        mover.hold(span)
        mover.stats.out_bytes += span.bytes
        return True

    def _take(self) -> SavedSpan | None:
        """The one that was kept first and still is."""
        while True:
            with self._lock:
                if not self._spans:
                    return None
                span = self._spans.popleft()()
            # Outside of the lock: a span that dies here gives back what is counted for it.
            if span is not None and span.is_kept and span.source is not None:
                return span
