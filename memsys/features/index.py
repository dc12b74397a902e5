"""Indices as users write them, brought to what the core takes: contiguous int32 or int64, of one dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memsys import _tensor
from memsys.errors import DtypeError, InputError, RangeError

Index = torch.Tensor | np.ndarray | Sequence[int]
_INTEGERS = (torch.int64, torch.int32)


def flat_index(index: Index) -> torch.Tensor:
    """A contiguous 1-D int32 or int64 tensor, uncopied where it was one.

    Raises DtypeError for other dtypes and InputError for other shapes.
    """
    if _is_flat(index):
        return index
    tensor = _as_tensor(index)
    if tensor.dtype not in _INTEGERS:
        raise DtypeError(f"an index: wanted int32 or int64, found {tensor.dtype}; convert it with .long()")
    if tensor.dim() != 1:
        raise InputError(f"an index: wanted 1 dimension, found shape {list(tensor.shape)}; "
                         "use table[index] for more, or index.flatten()")  # fmt: skip
    return tensor.contiguous()


def dim0_index(index: Index, row_count: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A flat index, and the shape of what it stood for, as tensor indexing on dimension 0 means it.

    A boolean mask of one dimension selects its true rows. Raises DtypeError and RangeError.
    """
    if _is_flat(index):
        return index, (index.numel(),)
    if isinstance(index, tuple) or index is None or index is Ellipsis:
        raise DtypeError("a table is indexed along dimension 0 only; use table.tensor[...] for the rest")
    tensor = _as_tensor(index)
    if tensor.dtype is torch.bool:
        if tuple(tensor.shape) != (row_count,):
            raise RangeError(f"a mask: wanted shape [{row_count}], one value a row, found {list(tensor.shape)}; "
                             "use table.tensor[mask] for masks of elements")  # fmt: skip
        tensor = tensor.nonzero().squeeze(1)
    if tensor.dtype not in _INTEGERS:
        raise DtypeError(f"an index: wanted int32, int64 or a bool mask, found {tensor.dtype}; convert it with .long()")
    return tensor.reshape(-1).contiguous(), tuple(tensor.shape)


def _is_flat(index: Index) -> bool:
    """Whether nothing is left to do: the usual case, told by few questions, for a call costs as much as many rows."""
    if type(index) is not torch.Tensor or index.dtype not in _INTEGERS or index.layout is not torch.strided:
        return False
    return index.dim() == 1 and index.is_contiguous()


def _as_tensor(index: Index) -> torch.Tensor:
    if isinstance(index, torch.Tensor):
        if not _tensor.is_plain(index):
            raise DtypeError(f"an index: wanted a plain dense tensor, found {type(index).__name__} of layout "
                             f"{index.layout}; use .to_dense()")  # fmt: skip
        return index
    if isinstance(index, np.ndarray) and not (
        index.flags.carray and index.dtype.isnative and min(index.strides, default=0) >= 0
    ):
        index = index.astype(index.dtype.newbyteorder("="), order="C")  # torch refuses reversed and read-only arrays
    try:
        tensor = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"an index: wanted integers, found {type(index).__name__} ({error}); "
                         "convert it with torch.as_tensor") from None  # fmt: skip
    # An empty list says nothing about its type: as in torch, it selects nothing.
    return tensor.long() if tensor.numel() == 0 and not isinstance(index, np.ndarray) else tensor


def out_of_range(index: torch.Tensor, position: int, row_count: int) -> RangeError:
    """The error for the first index that points outside a table."""
    return RangeError(
        f"index {int(index[position])} at position {position} is out of range for a table of {row_count} rows: "
        f"wanted -{row_count} to {row_count - 1}; look at what made the index"
    )
