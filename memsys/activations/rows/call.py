"""One call of a block while it runs: counts what it saves, and knows which of it can be divided by rows."""

from __future__ import annotations

import weakref

import torch

from memsys import _tensor
from memsys.activations.dispatcher import Handle, innermost_claimants
from memsys.activations.rows.arguments import Arguments
from memsys.activations.rows.geometry import RowGeometry, first_rows, geometry_of
from memsys.activations.rows.offer import CallFacts, RowSegment
from memsys.activations.rows.prefix import RowPrefix
from memsys.activations.rows.profile import RowProfile, profile, remake_us
from memsys.activations.rows.refused import Declined
from memsys.activations.rows.rerun import Sample
from memsys.activations.rows.segment import Segment, Write
from memsys.activations.rows.trial import Entry, Source, producer_of
from memsys.activations.span import MovedHandle, PassedHandle, SavedSpan
from memsys.errors import InputError, MemsysError


class RowCall:
    """Lives as long as the block's forward; what the graph needs of it is in its segment."""

    def __init__(self, block: torch.nn.Module, facts: CallFacts) -> None:
        self.facts = facts
        self.profile: RowProfile | None = None
        self._block = block
        self._segment: Segment | None = None
        self._arguments: Arguments | None = None
        self._attention: dict[int, MovedHandle | PassedHandle] = {}
        self._index = -1
        self._packed = 0  # the id of the tensor that is being saved just now
        self._entry: Entry | None = None
        self._is_regular = True

    def judge(self, args: tuple, kwargs: dict, is_last: bool, is_measured: bool) -> None:
        """Finds out whether the call can be a segment."""
        reason = _obstacle(self._block, is_last)
        verdict = Declined(reason) if reason is not None else profile(self._block, args, kwargs)
        if isinstance(verdict, Declined):
            self.facts.declined = verdict.reason
            return
        self.profile = verdict
        self._arguments = Arguments(args, kwargs)
        self._storages = [_tensor.storage_of(tensor) for tensor in self._arguments.tensors]
        self._sources = {value for row in verdict.attention for value in row if isinstance(value, Source)}
        self.facts.row_count = verdict.row_count(self._arguments)
        if is_measured:
            self.facts.remake_us = remake_us(self._block, args, kwargs, verdict)

    def count(self, tensor: torch.Tensor) -> None:
        """A tensor is about to be saved."""
        if self.profile is None:
            return
        self._index += 1
        self._packed = id(tensor)
        entry = self.profile.entries[self._index] if self._index < len(self.profile.entries) else None
        is_known = entry is not None and tensor.dtype == entry.dtype
        self._is_regular &= is_known and (entry.is_input or producer_of(tensor) == entry.producer)
        self._entry = entry if self._is_regular else None

    def offer(self, tensor: torch.Tensor, span: SavedSpan) -> RowSegment | None:
        """What a policy may divide; None for what is saved whole."""
        facts = self.facts
        if self.profile is None:
            return RowSegment(facts.id, declined=facts.declined)
        geometry = self._geometry(tensor, span)
        if geometry is None:
            return None
        return RowSegment(facts.id, geometry.row_count, geometry.row_bytes, facts.remake_us, is_proven=True)

    def divide(self, tensor: torch.Tensor, span: SavedSpan, alpha: float) -> RowPrefix | None:
        """How the span is divided; None where all its rows, or the span whole, are to be swapped."""
        if self.profile is None:
            return None
        rows = first_rows(alpha, self.facts.row_count)
        if self._segment is None and rows < self.facts.row_count:
            self._segment = self._begin_segment(rows)
        if self._segment is not None and self._segment.rows != rows:
            raise InputError(f"the policy divides {self.facts.block} at {rows} rows and at {self._segment.rows}; "
                             "return the same alpha for all tensors with the same row_segment.id")  # fmt: skip
        geometry = self._geometry(tensor, span)
        return RowPrefix(self._segment, geometry, rows) if self._segment is not None else None

    def covers(self, tensor: torch.Tensor, span: SavedSpan) -> bool:
        """Whether the tensor that is being saved is made again with a span that was divided before."""
        return span.rows.segment is self._segment and self._geometry(tensor, span) == span.rows.geometry

    def note(self, tensor: torch.Tensor, handle: Handle) -> None:
        """What the graph got for the tensor."""
        entry = self._entry_of(tensor)
        if entry is None or not isinstance(handle, (MovedHandle, PassedHandle)):
            return
        span = handle.span if isinstance(handle, MovedHandle) else None
        if self._index in self._sources:
            self._attention[self._index] = handle.reader()
        if span is not None and (entry.is_input or self._index in self._sources):
            self.facts.inputs.append(span.index)
        if span is None or span.rows is None or span.rows.segment is not self._segment:
            return
        layout = handle.layout
        layout = layout._replace(offset=layout.offset - span.begin_bytes // layout.dtype.itemsize)
        dropped = entry.row_dim.rows(tensor.detach(), self._segment.rows, self._segment.row_count)
        self._segment.writes[self._index] = Write(weakref.ref(span), layout, entry.row_dim, Sample.of(dropped))
        span.rows.handle_count += 1

    def check_complete(self) -> None:
        """The forward is over. Raises MemsysError where a re-run would lack an attention output."""
        if self._segment is not None and len(self._attention) < len(self._sources):
            raise MemsysError(f"rows of {self.facts.block} were dropped, and then it saved something else than in its "
                              "trial: its forward depends on more than its arguments; leave ROWS out of the policy "
                              "for it")  # fmt: skip

    def _begin_segment(self, rows: int) -> Segment:
        segment = Segment(self._block, self.profile, self.facts.row_count, rows)
        segment.attention = self._attention
        tensors = self._arguments.tensors
        handles = [_claimed(tensor) for tensor in tensors]
        segment.hold(self._arguments.skeleton, handles, [tensor.requires_grad for tensor in tensors])
        return segment

    def _entry_of(self, tensor: torch.Tensor) -> Entry | None:
        # Tensors are also claimed beside those that autograd is saving: the arguments, parts of subclasses.
        return self._entry if id(tensor) == self._packed else None

    def _geometry(self, tensor: torch.Tensor, span: SavedSpan) -> RowGeometry | None:
        entry = self._entry_of(tensor)
        storage = _tensor.storage_of(tensor)
        if entry is None or entry.row_dim is None or any(storage is known for known in self._storages):
            return None
        geometry = geometry_of(_tensor.layout_of(tensor, span.begin_bytes), entry.row_dim, span.bytes)
        return geometry if geometry is not None and geometry.row_count == self.facts.row_count else None


def _claimed(tensor: torch.Tensor) -> Handle:
    """An argument, given to whom it would be given if autograd saved it."""
    for claimant in innermost_claimants():
        handle = claimant.claim(tensor) if claimant.stage >= 0 else None
        if handle is not None:
            return handle
    return PassedHandle(tensor)


def _obstacle(block: torch.nn.Module, is_last: bool) -> str | None:
    """Why a call may not be looked at at all."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "torch.distributed is in use, which may shard its parameters between their uses"
    if not is_last:
        return "a forward pre-hook was added to it since memsys.offload, which may change its arguments"
    if any("memsys_session" in getattr(part.__dict__.get("forward"), "__dict__", {}) for part in block.modules()):
        return "a part of it is offloaded by itself"
    return None
