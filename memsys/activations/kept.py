"""The spans that stay on the device, in the order in which they were kept: backward wants the first of them last, so
that it is the first to go where the room is needed after all."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def take(self) -> SavedSpan | None:
        """The one that was kept first and still is; it is the caller's now."""
        while True:
            with self._lock:
                if not self._spans:
                    return None
                span = self._spans.popleft()()
            # Outside of the lock: a span that dies here gives back what is counted for it.
            if span is not None and span.is_kept and span.source is not None:
                return span
