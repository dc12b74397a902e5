"""The rows of a span that are swapped: its first ones, in as many pieces as there are outer parts, each an ordinary
span of its own, read back straight into their places in memory for the whole."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from memsys import _tensor
from memsys.activations.landing import Landing
from memsys.activations.rows.geometry import RowGeometry
from memsys.activations.span import SavedSpan

if TYPE_CHECKING:
    from memsys.activations.mover import Mover
    from memsys.activations.rows.segment import Segment

# Pieces smaller, or more, than this cost more by themselves than bringing them together first.
_LEAST_PIECE_BYTES = 64 << 10
_MOST_PIECES = 256
_PAGE_BYTES = 4096


class RowLanding:
    """A whole span coming back: the pieces on their way into `target`, and whether the other rows are there."""

    __slots__ = ("is_remade", "pieces", "stream", "target")

    def __init__(self, target: torch.UntypedStorage, stream: int) -> None:
        self.target = target
        self.stream = stream
        self.pieces: list[tuple[SavedSpan, Landing | None]] = []
        self.is_remade = False


class RowPrefix:
    """What a span that is divided by rows has instead of a block: its pieces, and its segment."""

    __slots__ = ("_again_count", "_is_gathered", "_phase", "_pieces", "geometry", "handle_count", "rows", "segment")

    def __init__(self, segment: Segment, geometry: RowGeometry, rows: int) -> None:
        self.segment = segment
        self.geometry = geometry
        self.rows = rows  # [0, rows) are swapped
        self.handle_count = 0
        self._again_count = 0
        self._is_gathered = False
        self._pieces: list[tuple[SavedSpan, int]] = []  # with their offsets in the span
        self._phase = 0  # the address that the bytes had: a page holds them as it did

    def send(self, mover: Mover, span: SavedSpan, tiers: tuple[object, ...]) -> int:
        """Starts to move the first rows, lets go of the others, and returns how many bytes move."""
        source, span.source = span.source, None
        self._phase = _tensor.address_of(source) + span.begin_bytes
        prefix_bytes = self.geometry.prefix_bytes(self.rows)
        if prefix_bytes == 0:
            mover.let_go(source)
            return 0
        held_bytes = span.bytes - prefix_bytes  # of the rows that nobody wants, while the others leave
        if self._is_scattered() or not mover.reserve(held_bytes):
            self._is_gathered = True
            gathered = self._gather(source, span)
            mover.let_go(source)
            self._pieces = [(SavedSpan(mover, gathered, 0, prefix_bytes), 0)]
        else:
            self._pieces = [(SavedSpan(mover, source, span.begin_bytes + offset, bytes_), offset)
                            for offset, bytes_ in self._places()]  # fmt: skip
            self._pieces[-1][0].held_bytes = held_bytes
        del source
        for piece, _ in self._pieces:
            mover.send(piece, tiers)
        return prefix_bytes

    @property
    def is_away(self) -> bool:
        return any(piece.block is not None for piece, _ in self._pieces)

    def start(self, mover: Mover, span: SavedSpan) -> RowLanding:
        """Makes room for the whole span and starts to bring its first rows back. Raises BudgetError."""
        landing = RowLanding(_room(mover, span.bytes, self._phase), mover.backend.current_stream())
        for piece, offset in self._pieces:
            source = piece.source  # read once: another thread drops it when its bytes have left
            if self._is_gathered:
                landing.pieces.append((piece, None))
            elif source is None:
                landing.pieces.append((piece, _start_into(mover, piece, landing.target, offset)))
            else:
                rows = _tensor.bytes_over(source)[piece.begin_bytes : piece.begin_bytes + piece.bytes]
                _tensor.bytes_over(landing.target)[offset : offset + piece.bytes].copy_(rows)
        return landing

    def finish(self, mover: Mover, landing: RowLanding) -> None:
        """Waits until the first rows are in their place."""
        pieces, landing.pieces = landing.pieces, []
        for piece, started in pieces:
            if started is not None:
                mover.land(started.arrival, mover.backend.current_stream())
                mover.stats.in_bytes += piece.bytes
                continue
            storage, begin = piece.storage()
            rows = _tensor.bytes_over(storage)[begin : begin + piece.bytes]
            self._first_rows(_tensor.bytes_over(landing.target)).copy_(rows.view(self.geometry.outer, -1))

    def storage(self, mover: Mover, span: SavedSpan) -> torch.UntypedStorage:
        """The whole span on the device: the first rows brought back, the others computed again with the segment."""
        stream = mover.backend.current_stream()
        storage = span.alive()
        if storage is None or span.stream != stream:
            landing = span.landing
            if landing is None or not landing.is_remade or landing.stream != stream:
                landing = self.segment.remake(mover, stream)[span]
            self.finish(mover, landing)
            storage = self._take(span, landing)
        elif span.unread_count <= 0:
            self._again_count -= 1
            if self._again_count <= 0:
                span.loaded = None
        mover.backend.note_use(_tensor.address_of(storage), span.bytes, False)
        return storage

    def _take(self, span: SavedSpan, landing: RowLanding) -> torch.UntypedStorage:
        storage = landing.target
        span.landing, span.restored, span.stream = None, weakref.ref(storage), landing.stream
        # Once all handles have been read (a graph that is kept for another backward), each of them comes once more.
        self._again_count = self.handle_count - 1 if span.unread_count <= 0 else 0
        span.loaded = storage if max(span.unread_count - 1, self._again_count) > 0 else None
        return storage

    def _is_scattered(self) -> bool:
        piece_bytes = self.rows * self.geometry.inner_bytes
        outer = self.geometry.outer
        return outer > _MOST_PIECES or (outer > 1 and piece_bytes < _LEAST_PIECE_BYTES)

    def _places(self) -> list[tuple[int, int]]:
        outer, count, inner_bytes = self.geometry
        if self.rows == count:
            return [(0, outer * count * inner_bytes)]
        return [(number * count * inner_bytes, self.rows * inner_bytes) for number in range(outer)]

    def _gather(self, source: torch.UntypedStorage, span: SavedSpan) -> torch.UntypedStorage:
        whole = _tensor.bytes_over(source)[span.begin_bytes : span.begin_bytes + span.bytes]
        return _tensor.storage_of(self._first_rows(whole).clone(memory_format=torch.contiguous_format))

    def _first_rows(self, whole: torch.Tensor) -> torch.Tensor:
        outer, count, inner_bytes = self.geometry
        return whole.view(outer, count * inner_bytes)[:, : self.rows * inner_bytes]


def _room(mover: Mover, bytes_: int, phase: int) -> torch.UntypedStorage:
    """Room for a whole span; where it is the store's own, at an address that is `phase` modulo a page, as the source's
    was, so that pieces of it are read straight into their place. Raises BudgetError."""
    if mover.backend.owns_targets:
        return mover.backend.empty(bytes_)
    room = mover.store.allocate_target(bytes_ + _PAGE_BYTES)
    skip = (phase - _tensor.address_of(_tensor.storage_over(room))) % _PAGE_BYTES
    return _tensor.storage_over(memoryview(room)[skip : skip + bytes_])


def _start_into(mover: Mover, piece: SavedSpan, target: torch.UntypedStorage, offset_bytes: int) -> Landing:
    """Starts to bring a piece back into its place in `target`."""
    stream = mover.backend.current_stream()
    arrival = mover.store.swap_in(piece.block, _tensor.address_of(target) + offset_bytes, stream)
    return Landing(mover.store, arrival, stream, target)
