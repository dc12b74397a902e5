"""A block's forward once more, on the last rows: what it saves for backward is written beside the rows that were
swapped, and compared with what its forward saved as it comes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch

from memsys import _tensor
from memsys.activations.rows.arguments import sliced
from memsys.activations.rows.attention import AttentionMode, rows_of
from memsys.activations.rows.refused import Enough, RefusedError
from memsys.activations.rows.trial import Source, producer_of
from memsys.errors import CorruptionError

if TYPE_CHECKING:
    from memsys.activations.rows.segment import Segment, Write
    from memsys.activations.span import SavedSpan

_SAMPLE_COUNT = 16
# Another count of rows is another kernel to some matrix products: their last bits may differ.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
_COARSE = 0.1


class Sample(NamedTuple):
    """Some elements of the rows that were dropped: a change that nothing else counts shows in them."""

    indices: tuple[torch.Tensor, ...]
    values: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> Sample | None:
        """Of floating rows on a CPU; elsewhere, looking would mean waiting."""
        if rows.device.type != "cpu" or not rows.is_floating_point() or rows.numel() == 0:
            return None
        count = min(_SAMPLE_COUNT, rows.numel())
        flat = torch.arange(count) * (rows.numel() // count) + rows.numel() // count // 2
        indices = torch.unravel_index(flat, rows.shape)
        return cls(indices, rows[indices].detach().clone())

    def fits(self, rows: torch.Tensor) -> bool:
        tolerance = _TOLERANCES.get(rows.dtype, _COARSE)
        scale = self.values.abs().amax().item()
        found = rows[self.indices]
        return torch.allclose(found, self.values, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


class Rerun:
    """One run, into the spans' `targets`."""

    def __init__(self, segment: Segment, targets: dict[SavedSpan, torch.UntypedStorage]) -> None:
        self._segment = segment
        self._targets = targets
        self._seen = 0
        self._last = max((index for index, write in segment.writes.items() if write.span() in targets), default=-1)
        self._attended: list[tuple[object, ...]] = []

    def run(self) -> None:
        """Raises CorruptionError if the block does something else than in its forward."""
        segment = self._segment
        inputs = [handle.unpack() for handle in segment.inputs]
        profile = segment.profile
        self._attended = [
            tuple(segment.attention[value].peek() if isinstance(value, Source) else value for value in row)
            for row in profile.attention
        ]
        args, kwargs = segment.arguments(
            sliced(inputs, profile.dims, segment.begin, segment.row_count, segment.needs_grad)
        )
        del inputs
        with ExitStack() as stack:
            for context in segment.contexts():
                stack.enter_context(context)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _never))
            stack.enter_context(AttentionMode(self._answer))
            try:
                segment.block.forward(*args, **kwargs)
            except Enough:
                return
            except RefusedError as refused:
                raise self._differs(str(refused)) from None
        raise self._differs(f"it saved {self._seen} tensors, wanted {self._last + 1}")

    def _answer(self, number: int, _: dict[str, object]) -> tuple[object, ...]:
        if number >= len(self._attended):
            raise self._differs("it attends more often")
        with torch.no_grad():
            return rows_of(self._attended[number], self._segment.begin, self._segment.row_count)

    def _pack(self, tensor: torch.Tensor) -> None:
        index, self._seen = self._seen, self._seen + 1
        entry = self._segment.profile.entries[index]
        producer = producer_of(tensor)
        if tensor.dtype != entry.dtype or (producer != entry.producer and not entry.is_input):
            raise self._differs(f"saved tensor {index} is a {tensor.dtype} made by {producer or 'nothing'}, wanted "
                                f"{entry.dtype} made by {entry.producer or 'nothing'}")  # fmt: skip
        write = self._segment.writes.get(index)
        if write is not None:
            with torch.no_grad():
                self._write(index, tensor.detach(), write)
        if index >= self._last:
            raise Enough

    def _write(self, index: int, tensor: torch.Tensor, write: Write) -> None:
        target = self._targets.get(write.span())
        if target is None:
            return  # nobody wants it any more, or it is there
        segment, row_dim = self._segment, write.row_dim
        wanted = row_dim.rows(_tensor.restore(target, write.layout), segment.rows, segment.row_count)
        count = segment.row_count - segment.begin
        fits = tensor.ndim == len(write.layout.size) and row_dim.row_count(tensor.shape[row_dim.dim]) == count
        found = row_dim.rows(tensor, segment.rows - segment.begin, count) if fits else tensor
        if found.shape != wanted.shape:
            raise self._differs(f"saved tensor {index} has shape {list(tensor.shape)}")
        if write.sample is not None and not write.sample.fits(found):
            raise self._differs(f"saved tensor {index} of shape {list(tensor.shape)} has other values")
        wanted.copy_(found)

    def _differs(self, what: str) -> CorruptionError:
        return CorruptionError(
            f"rows of {type(self._segment.block).__name__} can't be computed again: on rows [{self._segment.begin}, "
            f"{self._segment.row_count}) {what}; something that its forward reads has changed in a way that autograd "
            "does not count, or depends on the number of rows; leave ROWS out of the policy for it"
        )


def _never(_: object) -> torch.Tensor:
    raise AssertionError("a run of rows has no backward")
