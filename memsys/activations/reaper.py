"""A thread that drops sources as soon as their bytes have left.

The core's own threads may not release a torch object (the last release needs the GIL), so they only mark and count;
this thread sleeps in the core without the GIL, and pack and unpack do the same work when they come by. It lives while
something is under way and ends by itself soon after.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsys.activations.mover import Mover

_SLEEP_US = 20_000
_IDLE_ROUNDS = 50  # then the thread ends; the next departure starts another
_running: weakref.WeakSet[Reaper] = weakref.WeakSet()


class Reaper:
    """The thread of one mover; holds the mover weakly."""

    def __init__(self, mover: Mover) -> None:
        self._mover = weakref.ref(mover)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._lock = threading.Lock()
        _running.add(self)

    def wake(self) -> bool:
        """Something departs: the thread runs from now on. False where the system gives none; the next departure asks
        again."""
        with self._lock:
            if self._thread is None and not self._stopping:
                thread = threading.Thread(target=_run, args=(self._mover, self), name="memsys-reaper", daemon=True)
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread
            return self._thread is not None

    def may_end(self, mover: Mover) -> bool:
        """Ends the thread's duty if nothing is under way; under the lock, so that no departure falls in between."""
        with self._lock:
            if mover.has_departures:
                return False
            self._thread = None
            return True

    def stop(self) -> None:
        self._stopping = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def is_stopping(self) -> bool:
        return self._stopping


def _run(mover_ref: weakref.ref, reaper: Reaper) -> None:
    idle_rounds = 0
    while not reaper.is_stopping:
        mover = mover_ref()
        if mover is None:
            return
        store = mover.store
        seen = store.ended_count
        idle_rounds = 0 if mover.release_sources() else idle_rounds + 1
        if idle_rounds > _IDLE_ROUNDS and reaper.may_end(mover):
            return
        del mover
        store.wait_ended(seen, _SLEEP_US)
        del store


@atexit.register
def _stop_all() -> None:
    # A thread that comes back from C++ while the interpreter goes down would be ended in mid-flight.
    for reaper in list(_running):
        reaper.stop()
