"""Keeps the address ranges of sources that left until the next forward begins, without their pages.

glibc keeps what torch frees below its mmap threshold in its heap, in holes that other tensors then wander through and
dirty one after another, so that a step's peak outlives the tensors. Fixing that threshold would make every temporary
tensor pay page faults. Here a source that nobody else can reach any more is parked instead of freed: its pages go
back to the system, its addresses stay taken, and the range is freed when the next forward begins. The heap then
looks as it does in training without memsys, and only the pages differ. No setting of malloc changes; what it costs
is address space.
"""

from __future__ import annotations

import threading
from collections import deque

import torch

from memsys import _tensor
from memsys.activations import pages

# Sources that others still hold wait here; more than this would only delay their release.
_WAITING_LIMIT = 32
# Of a source popped from the deque: the local name, and getrefcount's own argument is added by the callee.
_OWN_REFERENCES = 2


class ParkingLot:
    """The dead sources of one mover. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[torch.UntypedStorage] = deque()
        self._parked: list[torch.UntypedStorage] = []
        self._lock = threading.Lock()

    def take(self, source: torch.UntypedStorage) -> None:
        """A source whose bytes have left."""
        self._waiting.append(source)

    def park_dead(self) -> None:
        """Parks the sources that only memsys still holds."""
        for _ in range(len(self._waiting)):
            with self._lock:
                if not self._waiting:
                    return
                source = self._waiting.popleft()
            if _tensor.is_sole_owner(source, _OWN_REFERENCES):
                begin = _tensor.address_of(source)
                pages.discard(begin, begin + source.nbytes())
                self._parked.append(source)
            elif len(self._waiting) < _WAITING_LIMIT:
                self._waiting.append(source)
            del source

    def is_parked(self, source: torch.UntypedStorage) -> bool:
        """Whether the source has no pages any more."""
        return any(source is parked for parked in self._parked)

    @property
    def parked_bytes(self) -> int:
        """Address space held, without pages."""
        return sum(source.nbytes() for source in self._parked)

    def begin_forward(self) -> None:
        """Frees what is parked, and stops waiting for sources that others hold."""
        self.begin_backward()
        self._parked.clear()

    def begin_backward(self) -> None:
        """Stops waiting for sources that others hold: nothing else tells when they let go."""
        self.park_dead()
        self._waiting.clear()
