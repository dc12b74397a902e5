"""What was brought back ahead of its time: bounded in bytes, and given up first when what is wanted now needs room."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsys.activations.span import SavedSpan


class PrefetchWindow:
    """The spans that were prefetched and not yet taken. Weak: the graph owns them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._spans: weakref.WeakSet[SavedSpan] = weakref.WeakSet()

    def has_room(self, bytes_: int) -> bool:
        """One span goes ahead however large it is."""
        return self._used_bytes == 0 or self._used_bytes + bytes_ <= self._limit_bytes

    def add(self, span: SavedSpan) -> None:
        span.is_prefetched = True
        self._used_bytes += span.bytes
        self._spans.add(span)

    def end(self, span: SavedSpan) -> None:
        """The span is wanted now, or has died; does nothing if it did not go ahead."""
        if span.is_prefetched:
            span.is_prefetched = False
            self._spans.discard(span)
            self._used_bytes -= span.bytes

    def give_up(self) -> bool:
        """Drops all of them, each of which has a copy below; returns whether there was one."""
        spans = [span for span in list(self._spans) if span.is_prefetched]
        for span in spans:
            self.end(span)
            span.landing = None
        return bool(spans)
