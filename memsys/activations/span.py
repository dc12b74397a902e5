"""One span of storage that autograd saved, and the handles that stand for tensors over it.

The handle is what the graph owns: it alone keeps the bytes alive, wherever they are, so that dropped graphs, repeated
backwards and exceptions need no bookkeeping elsewhere. Several handles share a span where saved tensors alias.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from memsys import _tensor
from memsys.errors import InPlaceError

if TYPE_CHECKING:
    from memsys.activations.landing import Landing
    from memsys.activations.mover import Mover
    from memsys.activations.order import ForwardRecord
    from memsys.activations.recipes import Recipe
    from memsys.activations.rows.prefix import RowLanding, RowPrefix


class SavedSpan:
    """Bytes [begin, begin + bytes) of one storage at one version: on the device, leaving, away, or back."""

    __slots__ = (
        *("__weakref__", "begin_bytes", "block", "bytes", "held_bytes", "index", "is_kept", "is_prefetched"),
        *("landing", "loaded", "mover", "recipe", "record", "restored", "rows", "source", "stream", "unread_count"),
    )

    def __init__(self, mover: Mover, storage: torch.UntypedStorage, begin_bytes: int, bytes_: int) -> None:
        self.mover = mover
        self.begin_bytes = begin_bytes
        self.bytes = bytes_
        self.source: torch.UntypedStorage | None = storage  # until the bytes have left; for good if kept
        self.block = None  # the core's handle on the bytes that are away
        self.is_kept = False  # counted in the device budget until the span dies
        self.landing: Landing | RowLanding | None = None  # a swap-in under way, or done and not yet taken
        self.is_prefetched = False
        self.restored: weakref.ref | None = None
        self.stream = mover.backend.current_stream()  # on which the bytes were packed, or last made again
        # The operation that saves them reads them on this stream, maybe yet to come; their block may be another's,
        # which does not wait for that when memsys lets the bytes go ahead of their time.
        mover.backend.note_user(storage)
        self.loaded: torch.UntypedStorage | None = None  # held while other handles still want it
        self.unread_count = 0
        self.index = -1
        self.record: ForwardRecord | None = None
        self.recipe: Recipe | None = None  # to be proven; without source and block: to be made from
        self.rows: RowPrefix | None = None  # where only some rows moved: instead of source and block
        self.held_bytes = 0  # of the source beside the span, reserved in the device budget until it has left

    def storage(self) -> tuple[torch.UntypedStorage, int]:
        """The bytes on the device, and how many bytes before them a layout counts from."""
        if self.rows is not None:
            return self.rows.storage(self.mover, self), self.begin_bytes
        source = self.source
        if source is None and self.block is None:
            return self.mover.remake(self), self.begin_bytes
        storage = self.mover.fetch(self) if source is None else source
        if self.recipe is not None:
            self.mover.prove(self, storage)
        return storage, self.begin_bytes if source is None else 0

    @property
    def is_away(self) -> bool:
        """Whether bytes of it have to be brought back."""
        return self.rows.is_away if self.rows is not None else self.block is not None and self.source is None

    def alive(self) -> torch.UntypedStorage | None:
        """Restored bytes that some tensor still uses."""
        return self.loaded if self.loaded is not None or self.restored is None else self.restored()

    def one_read(self) -> None:
        """A handle was unpacked for the first time, or died unread; the last one lets go of the restored bytes."""
        self.unread_count -= 1
        if self.unread_count <= 0:
            self.loaded = None

    def __del__(self) -> None:
        mover = getattr(self, "mover", None)
        if mover is not None:
            mover.forget(self)
            if self.record is not None and self.record.recorder is not None:
                self.record.recorder.note_died(self.index)


class MovedHandle:
    """Stands in the graph for a tensor over a span."""

    __slots__ = ("anchor", "is_read", "layout", "span", "version")

    def __init__(self, tensor: torch.Tensor, span: SavedSpan) -> None:
        self.span = span
        self.layout = _tensor.layout_of(tensor, 0)
        self.anchor = _tensor.anchor_of(tensor)
        self.version = _tensor.version_of(tensor)
        self.is_read = False
        span.unread_count += 1

    def reader(self) -> MovedHandle:
        """Another handle on the same tensor, for `peek`: nobody waits for its read."""
        other = MovedHandle.__new__(MovedHandle)
        other.span, other.layout, other.anchor, other.version = self.span, self.layout, self.anchor, self.version
        other.is_read = True
        return other

    def peek(self) -> torch.Tensor:
        """The tensor, while its bytes stay for the handles that have yet to read them."""
        self.span.unread_count += 1
        try:
            return self.unpack()
        finally:
            self.span.one_read()

    def unpack(self) -> torch.Tensor:
        check_version(self.anchor, self.version, self.layout.size)
        recorder = None if self.span.record is None else self.span.record.recorder
        if recorder is None:
            return self._unpack()
        recorder.note_read(self.span.index)
        try:
            return self._unpack()
        finally:
            recorder.resume()

    def _unpack(self) -> torch.Tensor:
        span = self.span
        storage, begin_bytes = span.storage()
        layout = self.layout
        if begin_bytes:
            layout = layout._replace(offset=layout.offset - begin_bytes // layout.dtype.itemsize)
        tensor = _tensor.restore(storage, layout)
        if not self.is_read:
            self.is_read = True
            span.one_read()
        if span.record is not None:
            span.record.note_read(span)
        return tensor

    def __del__(self) -> None:
        if not getattr(self, "is_read", True):
            self.span.one_read()


class PassedHandle:
    """Stands for a tensor that was left where it is; hooks switch torch's own in-place check off, so it is here."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        # A computed tensor may be saved by the very operation that made it: holding that would be a cycle. A leaf that
        # wants a gradient can't become one.
        self.tensor = tensor if tensor.requires_grad and tensor.is_leaf else tensor.detach()
        self.version = _tensor.version_of(tensor)

    def reader(self) -> PassedHandle:
        """Another handle on the same tensor: itself, since reading takes nothing away."""
        return self

    def peek(self) -> torch.Tensor:
        return self.unpack()

    def unpack(self) -> torch.Tensor:
        if self.version != -1 and self.tensor._version != self.version:
            check_version(self.tensor, self.version, self.tensor.shape)
        return self.tensor


class WrapperHandle:
    """Stands for a tensor subclass: the tensors it is made of have handles, the version is the outermost's."""

    __slots__ = ("anchor", "context", "kind", "parts", "size", "stride", "version")

    def __init__(self, tensor: torch.Tensor, parts: dict[str, object], context: object) -> None:
        self.kind = type(tensor)
        self.parts = parts
        self.context = context
        self.size, self.stride = tensor.size(), tensor.stride()
        self.version = _tensor.version_of(tensor)
        self.anchor = weakref.ref(tensor)

    def unpack(self) -> torch.Tensor:
        outer = self.anchor()
        if outer is not None:
            check_version(outer, self.version, self.size)
        inner = {name: handle.unpack() for name, handle in self.parts.items()}
        return self.kind.__tensor_unflatten__(inner, self.context, self.size, self.stride)


def check_version(tensor: torch.Tensor, saved_version: int, size: torch.Size) -> None:
    """Raises InPlaceError if the tensor was changed in place since it was saved."""
    found = _tensor.version_of(tensor)
    if found != saved_version:
        raise InPlaceError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a saved tensor of shape {list(size)} is at version {found}, wanted version {saved_version}; "
            "clone it before the in-place change, or run backward before the optimizer step"
        )
