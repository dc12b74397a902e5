"""Keeps autograd from holding streamed weights: a saved view of one becomes its name and its layout, and backward asks
for the bytes again. Modules and their classes stay untouched: whatever operation saves the weight, by storage it is
known."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import torch

from memsys import _tensor
from memsys.activations.span import check_version

if TYPE_CHECKING:
    from memsys.weights.session import StreamSession


class BoundStorages:
    """Which storage holds which weight just now: (block, part) by storage."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref, int, int]] = {}
        self._lock = threading.Lock()

    def add(self, storage: torch.UntypedStorage, block: int, part: int) -> None:
        key = _tensor.storage_key(storage)
        with self._lock:
            self._found[key] = (weakref.ref(storage), block, part)

    def remove(self, storage: torch.UntypedStorage) -> None:
        with self._lock:
            self._found.pop(_tensor.storage_key(storage), None)

    def find(self, storage: torch.UntypedStorage) -> tuple[int, int] | None:
        found = self._found.get(_tensor.storage_key(storage))
        # The number alone may belong to a dead storage; the weak reference tells.
        return (found[1], found[2]) if found is not None and found[0]() is storage else None


class StreamClaim:
    """Claims every saved view of a streamed weight."""

    stage = 0
    in_backward = True

    def __init__(self, session: StreamSession) -> None:
        self._session = session

    def claim(self, tensor: torch.Tensor) -> StreamHandle | None:
        if not _tensor.is_plain(tensor):
            return None  # also a weight that is away, which operations never see
        place = self._session.bound.find(_tensor.storage_of(tensor))
        return None if place is None else StreamHandle(self._session, place, tensor)


class StreamHandle:
    """Stands in the graph for a view of a streamed weight."""

    __slots__ = ("anchor", "layout", "place", "session", "version")

    def __init__(self, session: StreamSession, place: tuple[int, int], tensor: torch.Tensor) -> None:
        self.session = session
        self.place = place
        self.layout = _tensor.layout_of(tensor, 0)
        self.anchor = _tensor.anchor_of(tensor)
        self.version = _tensor.version_of(tensor)

    def unpack(self) -> torch.Tensor:
        check_version(self.anchor, self.version, self.layout.size)
        return _tensor.restore(self.session.storage_for_backward(*self.place), self.layout)
