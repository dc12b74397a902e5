"""Moves spans: out while the forward goes on, in ahead of backward, within the budgets.

Sources are held until their bytes have left (or their stream waits for the copy), never more of them than a bound;
restored bytes are handed out only after their transfer, checked, has ended.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from memsys import _tensor
from memsys.activations.ahead import PrefetchWindow
from memsys.activations.heap import HeapTrimmer
from memsys.activations.kept import KeptSpans
from memsys.activations.landing import Landing
from memsys.activations.parking import ParkingLot
from memsys.activations.reaper import Reaper
from memsys.activations.recipes import Recipe
from memsys.activations.span import SavedSpan
from memsys.activations.stats import OffloadStats
from memsys.errors import BudgetError, MemsysError, SpillError

if TYPE_CHECKING:
    from memsys.activations.recording import Recording
    from memsys.activations.rows.prefix import RowLanding

logger = logging.getLogger("memsys")

# Enough for files while a CPU computes one operation, and more than the largest tensors of a layer on an accelerator,
# whose link is much faster (not measured yet); more would only hold memory.
DEFAULT_WINDOW_BYTES = 24 << 20
DEVICE_WINDOW_BYTES = 512 << 20
_WAIT_US = 50_000
_PATIENCE = 4  # waits before a budget error: memory comes back a moment after the transfer that used it has ended
_Started = TypeVar("_Started")


class Mover:
    """Out, in, and what is in between. Thread-safe: no lock is held across a transfer."""

    def __init__(
        self,
        runtime: object,
        backend: _tensor.Backend,
        store: object,
        stats: OffloadStats,
        parking: ParkingLot | None = None,
        trimmer: HeapTrimmer | None = None,
    ) -> None:
        self.backend = backend
        self.store = store
        self.stats = stats
        self._parking = parking  # where sources are torch's heap memory
        self._trimmer = trimmer  # with return_memory
        self.recording: Recording | None = None  # while a timeline is recorded
        self.is_direct = runtime.is_host_addressable
        self._departures: deque[SavedSpan] = deque()
        self._departures_lock = threading.Lock()
        self._held_bytes = 0  # sources that have not left
        self.kept = KeptSpans()
        self.away: object = None  # the tier that was sent to last
        self._reaper = None if runtime.is_seeded else Reaper(self)
        limit = store.device_budget.limit_bytes
        default_bytes = DEFAULT_WINDOW_BYTES if self.is_direct else DEVICE_WINDOW_BYTES
        self.window_bytes = default_bytes if limit < 0 else min(default_bytes, limit // 4)
        self.ahead = PrefetchWindow(self.window_bytes)

    # Out -----------------------------------------------------------------------------------------------------------

    def keep(self, span: SavedSpan) -> bool:
        """Leaves the span on the device, if the device budget has room, be it when what is leaving has left."""
        while True:
            seen = self.store.ended_count
            self._trim_for(span.bytes)  # the room of restored tensors that are gone
            if self.store.device_budget.try_reserve(span.bytes):
                break
            if self._is_room_coming(span.bytes):
                self.wait_for_transfer(seen)
            elif self.store.ended_count == seen:
                return False
        span.is_kept = True
        self.stats.kept_bytes += span.bytes
        self.kept.add(span)
        return True

    def end_keep(self, span: SavedSpan) -> None:
        """The span is not counted as kept any more; does nothing if it was not."""
        if span.is_kept:
            span.is_kept = False
            self.store.device_budget.release(span.bytes)
            self.stats.kept_bytes -= span.bytes

    def send(self, span: SavedSpan, tiers: tuple[object, ...]) -> None:
        """Starts to move the span to the first tier that takes it; else keeps it; else raises the first refusal."""
        if self._trimmer is not None:
            self._trimmer.check()
        address = _tensor.address_of(span.source) + span.begin_bytes
        self.backend.note_use(address, span.bytes, True)
        self._make_room(span.bytes)
        refusal, self.away = None, tiers[0]
        for tier in tiers:
            try:
                self.kept.make_room(self, span.bytes)
                span.block = self.store.swap_out(address, span.bytes, self.backend.current_stream(), tier)
            except (BudgetError, SpillError) as error:
                refusal = refusal or error.with_traceback(None)  # whose frames would keep the span alive
                continue
            if self.recording is not None:
                self.recording.note_sent(span)
            self.hold(span)
            return
        if not self.keep(span):
            raise refusal
        if self.stats.fallback_count == 0:
            logger.warning("a saved tensor of %d bytes stays on the device: %s", span.bytes, str(refusal))
        self.stats.fallback_count += 1

    def drop(self, span: SavedSpan, recipe: Recipe) -> None:
        """Lets the bytes go: they are made again when backward wants them."""
        span.recipe, source, span.source = recipe, span.source, None
        self.let_go(source)

    def let_go(self, source: torch.UntypedStorage) -> None:
        """Nobody here wants the storage any more."""
        if self._parking is not None:
            self._parking.take(source)

    def reserve(self, bytes_: int) -> bool:
        """Counts bytes in the device budget that are held for as long as others leave; False if it has no room."""
        self._trim_for(bytes_)
        return self.store.device_budget.try_reserve(bytes_)

    def _release_held(self, span: SavedSpan) -> None:
        bytes_, span.held_bytes = span.held_bytes, 0
        if bytes_:
            self.store.device_budget.release(bytes_)

    def hold(self, span: SavedSpan) -> None:
        with self._departures_lock:
            self._departures.append(span)
            self._held_bytes += span.bytes
        while self._reaper is not None and not self._reaper.wake() and self.has_departures:
            self.wait_for_transfer()  # nobody would let go of the last ones

    def _make_room(self, bytes_: int) -> None:
        """Blocks until `bytes_` more may be in flight: the bound holds however far the host runs ahead."""
        self.release_sources()
        if self._has_room(bytes_):
            return
        begin_us = self.store.now_us()
        while not self._has_room(bytes_) and self._departures:
            if not self._order_oldest():
                self.wait_for_transfer()
        self._trim_for(bytes_)
        self._count_stall(begin_us)

    def _count_stall(self, begin_us: int) -> None:
        end_us = self.store.now_us()
        self.stats.stall_us += end_us - begin_us
        if self.recording is not None:
            self.recording.note_stall(begin_us, end_us)

    def _has_room(self, bytes_: int) -> bool:
        within = self._held_bytes == 0 or self._held_bytes + bytes_ <= self.window_bytes
        return within and self.store.device_budget.left_bytes >= bytes_

    def _is_room_coming(self, bytes_: int) -> bool:
        # A swap-in that has just ended gives its memory back a moment later.
        left_bytes = self.store.device_budget.left_bytes
        return left_bytes + self._held_bytes >= bytes_ or self.store.arriving_count > 0

    def _trim_for(self, bytes_: int) -> None:
        if self.store.device_budget.left_bytes < bytes_:
            self.store.trim()

    def _order_oldest(self) -> bool:
        """Where the device orders reuse itself: lets the stream that uses the oldest source wait for its copy."""
        if self.is_direct or self._held_bytes == 0:
            return False
        with self._departures_lock:
            span = next((span for span in self._departures if span.source is not None), None)
        if span is None or not self.store.order_source(span.block, span.stream):
            return False
        self._drop_source(span)
        return True

    def wait_for_transfer(self, seen: int | None = None) -> None:
        """Until a transfer has ended since `seen`, or since now."""
        seen = self.store.ended_count if seen is None else seen
        if not self.release_sources():
            self.store.wait_ended(seen, _WAIT_US)
            self.release_sources()

    @property
    def has_departures(self) -> bool:
        """Whether a source is still held for its bytes to leave."""
        return bool(self._departures)

    def release_sources(self) -> bool:
        """Drops the sources whose bytes have left; returns whether there was one. Any thread may call it."""
        ended = []
        with self._departures_lock:
            while self._departures and self._departures[0].block.has_left:
                ended.append(self._departures.popleft())
        for span in ended:
            self._end_departure(span)
        if self._parking is not None:
            self._parking.park_dead()
        return bool(ended)

    def _end_departure(self, span: SavedSpan) -> None:
        error = span.block.leave_error
        if error is None:
            self._drop_source(span)
            return
        with self._departures_lock:
            self._held_bytes -= span.bytes
        # The write failed, so the source is the only copy; its bytes stay reserved in the device budget.
        span.is_kept, span.block = True, None
        self.stats.kept_bytes += span.bytes
        self.stats.fallback_count += 1
        logger.warning("a saved tensor of %d bytes stays on the device: %s", span.bytes, error)

    def _drop_source(self, span: SavedSpan) -> None:
        with self._departures_lock:
            source, span.source = span.source, None
            if source is None:
                return
            self._held_bytes -= span.bytes
        self.backend.note_free(_tensor.address_of(source) + span.begin_bytes, span.bytes)
        self._release_held(span)
        self.let_go(source)

    # In ------------------------------------------------------------------------------------------------------------

    def prefetch(self, span: SavedSpan) -> bool:
        """Starts to bring a span back if it is away and the window has room; False says to try again later."""
        if not span.is_away or span.landing is not None or span.alive() is not None:
            return True
        if not self.ahead.has_room(span.bytes):
            return False
        try:
            if span.rows is not None:
                span.landing = span.rows.start(self, span)
            else:
                self._start_arrival(span)
        except BudgetError:
            return False
        self.ahead.add(span)
        return True

    def fetch(self, span: SavedSpan) -> torch.UntypedStorage:
        """The span's bytes, back on the device; what the current stream does from now on may read them."""
        if self._trimmer is not None:
            self._trimmer.check()
        stream = self.backend.current_stream()
        storage = span.alive()
        if storage is not None and not self.backend.owns_targets:
            return storage
        landing = span.landing
        if landing is None or landing.stream != stream:
            landing = self._on_demand(lambda: self._start_arrival(span))
        self.land(landing.arrival, stream)
        storage = self._take(span, landing)
        self.backend.note_use(_tensor.address_of(storage), span.bytes, False)
        return storage

    def remake(self, span: SavedSpan) -> torch.UntypedStorage:
        """The bytes of a span that was dropped, made again; counted in the device budget while they live."""
        storage, stream = span.alive(), self.backend.current_stream()
        if storage is not None and span.stream == stream:  # another stream has no edge to what this one wrote
            self.backend.note_use(_tensor.address_of(storage), span.bytes, False)
            return storage
        if self._trimmer is not None:
            self._trimmer.check()
        storage = self._on_demand(lambda: self._allocate(span.bytes))
        self.backend.note_use(_tensor.address_of(storage), span.bytes, True)
        begin_us = self.store.now_us()
        span.recipe.make(storage)
        if self.recording is not None:
            self.recording.note_remade(begin_us, span)
        span.restored, span.stream = weakref.ref(storage), stream
        span.loaded = storage if span.unread_count > 1 else None
        self.stats.remade_bytes += span.bytes
        return storage

    def prove(self, span: SavedSpan, moved: torch.UntypedStorage) -> None:
        """Tries the span's recipe beside the bytes that moved, if the budget has room for both. Never fails: backward
        has its bytes already."""
        recipe, span.recipe = span.recipe, None
        if recipe is None:
            return  # another thread was first
        try:
            recipe.prove(moved, self._on_demand(lambda: self._allocate(span.bytes)))
        except Exception as error:
            logger.debug("could not try whether a saved tensor can be computed again", exc_info=True)
            if not isinstance(error, (MemsysError, MemoryError)):
                recipe.refuse()
        finally:
            if self.store.device_budget.limit_bytes >= 0:
                recipe.let_go()

    def _allocate(self, bytes_: int) -> torch.UntypedStorage:
        if self.backend.owns_targets:
            return self.backend.empty(bytes_)
        return _tensor.storage_over(self.store.allocate_target(bytes_))

    def _take(self, span: SavedSpan, landing: Landing) -> torch.UntypedStorage:
        self.ahead.end(span)
        if self.backend.owns_targets:
            storage = landing.target
        else:
            # The core's memory is the arrival's: letting go of the arrival leaves it to the tensors over it.
            storage = span.alive() or _tensor.storage_over(landing.arrival.target())
            span.landing = None
        span.restored = weakref.ref(storage)
        if span.unread_count > 1:
            span.loaded = storage
        elif self.backend.owns_targets:
            span.landing = landing.target = None
        self.stats.in_bytes += span.bytes
        return storage

    def land(self, arrival: object, stream: int) -> None:
        """What `stream` does from now on may read what arrived."""
        if arrival.is_issued and (not self.is_direct or arrival.is_done):
            self.store.arrive(arrival, stream)
            return
        begin_us = self.store.now_us()
        self.store.arrive(arrival, stream)
        self._count_stall(begin_us)
        self.stats.late_count += 1

    def _start_arrival(self, span: SavedSpan) -> Landing:
        stream = self.backend.current_stream()
        target = self.backend.empty(span.bytes) if self.backend.owns_targets else None
        address = 0 if target is None else _tensor.address_of(target)
        arrival = self.store.swap_in(span.block, address, stream)
        landing = span.landing = Landing(self.store, arrival, stream, target)
        return landing

    # Rows ----------------------------------------------------------------------------------------------------------

    def start_rows(self, span: SavedSpan) -> RowLanding:
        """Room for a span that is divided by rows, and its first rows on their way into it."""
        return self._on_demand(lambda: span.rows.start(self, span))

    def _on_demand(self, start: Callable[[], _Started]) -> _Started:
        """Waits for room where prefetching would have given up."""
        patience = _PATIENCE
        while True:
            seen = self.store.ended_count
            try:
                return start()
            except BudgetError:
                self.store.trim()
                if self.store.in_flight_bytes > 0 or self.store.arriving_count > 0:
                    self.wait_for_transfer(seen)
                elif self.store.ended_count > seen:
                    continue  # memory came back meanwhile
                elif not self.ahead.give_up() and not self.kept.send_first(self):
                    if patience == 0:
                        raise
                    patience -= 1
                    self.store.wait_ended(self.store.ended_count, _WAIT_US)

    # End -----------------------------------------------------------------------------------------------------------

    def forget(self, span: SavedSpan) -> None:
        """A span died: gives back what was counted for it."""
        self.end_keep(span)
        self.ahead.end(span)
        self._release_held(span)

    def close(self) -> None:
        """Ends the reaper; spans still owned by a graph go on working."""
        if self._reaper is not None:
            self._reaper.stop()
