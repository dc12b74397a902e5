"""Gives the memory of tensors that left back to the system, and, on request only, the rest of the freed heap too.

glibc keeps what torch frees below its mmap threshold in its heap, in holes that the next tensors often do not fit, so
the peak of a step outlives it. Fixing that threshold would make every temporary tensor pay page faults. Here memsys
owns the dead sources instead: once nobody else holds one, its pages go back, and the address range returns to the
heap; only what was swapped out pays a page fault when it is used again. No setting of malloc changes.
Temporary tensors wander through those holes and dirty them one after another, so with return_memory the heap is also
trimmed whenever the process has grown by a fixed amount.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import deque
from enum import Enum

import torch

from memsys import _tensor

# Growth of the process between two trims: a smaller one trims more often and pays more page faults.
_GROWTH_BYTES = 48 << 20
# Sources that others still hold wait here; more than this would only delay their release.
_WAITING_LIMIT = 32
# Of a source popped from the deque: the local name, and getrefcount's own argument is added by the callee.
_OWN_REFERENCES = 2


class HeapMode(Enum):
    """DISCARD: the pages of dead sources; TRIM: also free heap, by malloc_trim."""

    DISCARD = "discard"
    TRIM = "trim"


class HeapKeeper:
    """Holds dead sources until they are nobody else's, and trims the heap where the C library can."""

    def __init__(self, mode: HeapMode) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None) if mode is HeapMode.TRIM else None
        self._floor_bytes = resident_bytes()
        self._waiting: deque[torch.UntypedStorage] = deque()
        self._lock = threading.Lock()
        self.trim_count = 0
        self.discarded_bytes = 0

    @property
    def trims(self) -> bool:
        return self._trim is not None

    def take(self, source: torch.UntypedStorage) -> None:
        """A source whose bytes have left."""
        with self._lock:
            self._waiting.append(source)

    def give_back(self) -> None:
        """Discards the pages of the sources that only memsys still holds."""
        with self._lock:
            count = len(self._waiting)
        for _ in range(count):
            with self._lock:
                if not self._waiting:
                    return
                source = self._waiting.popleft()
            bytes_ = source.nbytes()
            if _tensor.discard_pages(source, _OWN_REFERENCES):
                self.discarded_bytes += bytes_
            elif len(self._waiting) < _WAITING_LIMIT:
                with self._lock:
                    self._waiting.append(source)
            del source

    def check(self) -> None:
        """Trims the heap if the process has grown since the last time; called as tensors are saved and read."""
        self.give_back()
        if self._trim is None:
            return
        resident = resident_bytes()
        self._floor_bytes = min(self._floor_bytes, resident)
        if resident > self._floor_bytes + _GROWTH_BYTES:
            self._trim(0)
            self.trim_count += 1
            self._floor_bytes = resident_bytes()

    def turn(self) -> None:
        """Forward has ended: lets go of what others hold, and trims."""
        self.give_back()
        with self._lock:
            self._waiting.clear()
        self._floor_bytes = 0
        self.check()

    def release(self) -> None:
        """The session ends."""
        self.turn()


def resident_bytes() -> int:
    """The process's resident memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0
