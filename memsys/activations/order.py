"""The order in which backward wants its tensors: guessed as the reverse of packing, then learnt from what happened.

Torch promises no order, so this only decides what to prefetch; a tensor that is asked for out of turn is fetched on
demand, and the prediction goes on from there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memsys.activations.mover import Mover
    from memsys.activations.recorder import StepRecorder
    from memsys.activations.span import SavedSpan

Signature = tuple[int, ...]


class OrderBook:
    """The orders learnt so far, by the sizes of the spans that a forward saved."""

    LIMIT = 64  # shapes remembered; the oldest goes

    def __init__(self) -> None:
        self._orders: dict[Signature, list[int]] = {}

    def predict(self, signature: Signature) -> list[int]:
        """Span indices in the order in which backward will want them."""
        known = self._orders.get(signature)
        return known if known is not None else list(range(len(signature) - 1, -1, -1))

    def learn(self, signature: Signature, order: list[int]) -> None:
        while len(self._orders) >= self.LIMIT:
            self._orders.pop(next(iter(self._orders)))
        self._orders[signature] = order


class ForwardRecord:
    """The spans of one forward pass, and how far backward has come through them."""

    def __init__(self, mover: Mover, book: OrderBook) -> None:
        self._mover = mover
        self._book = book
        self._spans: list[weakref.ref[SavedSpan]] = []
        self.sizes: list[int] = []
        self.remade: set[int] = set()  # of the spans: not moved, but computed again
        self._seen: list[int] = []
        self._seen_set: set[int] = set()
        self._predicted: list[int] | None = None
        self._place: dict[int, int] = {}
        self._cursor = 0
        self.on_backward: Callable[[], None] | None = None  # called when backward takes the first span
        self.recorder: StepRecorder | None = None  # where the step's times are noted

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def is_over(self) -> bool:
        """Whether backward has begun, or dropped what was saved last: what is saved now is of another step."""
        return self._predicted is not None or (len(self._spans) > 0 and self._spans[-1]() is None)

    def add(self, span: SavedSpan) -> None:
        span.index = len(self._spans)
        span.record = self
        self._spans.append(weakref.ref(span))
        self.sizes.append(span.bytes)

    def note_remade(self, span: SavedSpan) -> None:
        self.remade.add(span.index)

    def note_read(self, span: SavedSpan) -> None:
        """Backward has taken a span: learns the order and prefetches what comes next."""
        if self._predicted is None or len(self._predicted) != len(self._spans):
            self._begin_backward()
        if span.index not in self._seen_set:
            self._seen_set.add(span.index)
            self._seen.append(span.index)
            if len(self._seen) == len(self._spans):
                self._book.learn(tuple(self.sizes), list(self._seen))
        self._cursor = max(self._cursor, self._place[span.index] + 1)
        self._prefetch()

    def _begin_backward(self) -> None:
        self._predicted = self._book.predict(tuple(self.sizes))
        self._place = {index: place for place, index in enumerate(self._predicted)}
        self._cursor = 0
        if self.on_backward is not None and not self._seen:
            self.on_backward()

    def end(self) -> None:
        """Another forward begins: what backward left unread counts as read last."""
        if self._seen and len(self._seen) < len(self._spans):
            rest = [index for index in self._predicted if index not in self._seen_set]
            self._book.learn(tuple(self.sizes), self._seen + rest)

    def _prefetch(self) -> None:
        predicted = self._predicted
        while self._cursor < len(predicted):
            span = self._spans[predicted[self._cursor]]()
            if span is not None and not self._mover.prefetch(span):
                return  # no room now: the next read tries again
            self._cursor += 1
