"""Runs of a block on a few rows: what autograd saves in a full run and in a run on the last rows must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from memsys import _tensor
from memsys.activations.rows.attention import ROW_DIM, Answer, AttentionCall, AttentionMode, rows_of
from memsys.activations.rows.geometry import RowDim
from memsys.activations.rows.refused import RefusedError

Run = Callable[[], object]


class Saved(NamedTuple):
    """A tensor that was saved: `value` as it was then, `tensor` for where it lies."""

    producer: str
    tensor: torch.Tensor
    value: torch.Tensor


@dataclass
class Trial:
    """One run's saved tensors in their order, its attention operations, and the storages of its results."""

    saved: list[Saved]
    attention: list[AttentionCall]
    outputs: list[torch.UntypedStorage]


class Entry(NamedTuple):
    """What is known of the n-th saved tensor of a block: made by what, of which dtype, and its rows (None: it is saved
    whole). `is_input`: it is an argument, so it may be made by anything."""

    producer: str
    dtype: torch.dtype
    row_dim: RowDim | None
    is_input: bool = False


def run(call: Run, mode: AttentionMode) -> Trial:
    """Runs the block. Raises RefusedError; what the block raises is left alone."""
    saved: list[Saved] = []

    def pack(tensor: torch.Tensor) -> None:
        saved.append(Saved(producer_of(tensor), tensor.detach(), tensor.detach().clone()))

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, _never):
        mode.hooks = _tensor.top_hooks()
        with mode:
            outputs = call()
    tensors = [value for value in _tensor.leaves_of(outputs) if isinstance(value, torch.Tensor)]
    return Trial(saved, mode.calls, [_tensor.storage_of(tensor) for tensor in tensors])


def producer_of(tensor: torch.Tensor) -> str:
    """The name of the autograd node that made the tensor; "" for leaves."""
    return "" if tensor.grad_fn is None else tensor.grad_fn.name()


def agree(full: Trial, part: Trial, inputs: list[torch.UntypedStorage], begin: int, end: int,
          tolerance: float) -> list[Entry]:  # fmt: skip
    """What each saved tensor is, if those of a run on rows [begin, end) are the rows of those of the full run on rows
    [0, end). Raises RefusedError where they are not."""
    if len(full.saved) != len(part.saved) or len(full.attention) != len(part.attention):
        raise RefusedError(f"on a part of the rows it saves {len(part.saved)} tensors instead of {len(full.saved)}")
    attended = [_tensor.storage_of(value) for call in full.attention for value in call.results
                if isinstance(value, torch.Tensor)]  # fmt: skip
    entries = []
    for index, (one, other) in enumerate(zip(full.saved, part.saved, strict=True)):
        storage = _tensor.storage_of(one.tensor)
        is_input = any(storage is known for known in inputs)
        if one.value.dtype != other.value.dtype or (one.producer != other.producer and not is_input):
            raise _differs(index, one, "is saved in its place by another operation on a part of the rows")
        is_whole = is_input or any(storage is known for known in (*attended, *full.outputs))
        row_dim = None if is_whole else _row_dim(index, one, other, begin, end, tolerance)
        entries.append(Entry(one.producer, one.value.dtype, row_dim, is_input))
    return entries


def sources(full: Trial) -> list[list[object]]:
    """For each attention operation and result: the index of the saved tensor that is this very result, or if none is,
    the result. Raises RefusedError where an output is not saved."""
    places: list[list[object]] = []
    for call in full.attention:
        row = [next((Source(index) for index, saved in enumerate(full.saved) if _is_same(saved.tensor, value)), value)
               for value in call.results]  # fmt: skip
        if not isinstance(row[0], Source):
            raise RefusedError("the output of an attention operation is not saved for backward")
        places.append(row)
    return places


class Source(int):
    """The index of a saved tensor."""


def _is_same(tensor: torch.Tensor, value: object) -> bool:
    return (isinstance(value, torch.Tensor) and _tensor.storage_of(tensor) is _tensor.storage_of(value)
            and tensor.shape == value.shape and tensor.stride() == value.stride()
            and tensor.storage_offset() == value.storage_offset())  # fmt: skip


def _row_dim(index: int, full: Saved, part: Saved, begin: int, end: int, tolerance: float) -> RowDim | None:
    one, other = full.value, part.value
    dims = [dim for dim in range(min(one.ndim, other.ndim)) if one.shape[dim] != other.shape[dim]]
    if one.ndim != other.ndim or len(dims) > 1:
        raise _differs(index, full, f"has shape {list(other.shape)} on a part of the rows, {list(one.shape)} on all")
    if not dims:
        if not _close(one, other, tolerance):
            raise _differs(index, full, "has other values on a part of the rows: it is not token-local")
        return None
    size, part_size = one.shape[dims[0]], other.shape[dims[0]]
    times, rest = divmod(size, end)
    if rest or part_size != times * (end - begin):
        raise _differs(index, full, f"has shape {list(other.shape)} on a part of the rows, {list(one.shape)} on all")
    for outer in (number for number in range(1, times + 1) if times % number == 0):
        row_dim = RowDim(dims[0], outer, times // outer)
        if _close(row_dim.rows(one, begin, end), row_dim.split(other), tolerance):
            return row_dim
    raise _differs(index, full, "has other values on a part of the rows: it is not token-local")


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = one.abs().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _differs(index: int, saved: Saved, what: str) -> RefusedError:
    made = f" (made by {saved.producer})" if saved.producer else ""
    return RefusedError(f"saved tensor {index} of shape {list(saved.value.shape)}{made} {what}")


def _never(_: object) -> torch.Tensor:
    raise AssertionError("a trial has no backward")


def answer_from(full: Trial, begin: int, end: int) -> Answer:
    """Attention on rows [begin, end), from the run on all."""

    def answer(number: int, named: dict[str, object]) -> tuple[object, ...]:
        if number >= len(full.attention):
            raise RefusedError("on a part of the rows it attends more often")
        wanted = list(full.attention[number].query_shape)
        rows, wanted[ROW_DIM] = wanted[ROW_DIM], end - begin
        if rows != end or wanted != list(named["query"].shape):
            raise RefusedError("its attention does not run along the dimension that was taken for the sequence")
        return rows_of(full.attention[number].results, begin, end)

    return answer
