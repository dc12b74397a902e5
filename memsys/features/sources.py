"""What a table can be made of: a tensor, an array, or a .npy or .safetensors file, read and checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from memsys import _C, _tensor
from memsys._dtypes import DTYPES
from memsys.errors import DtypeError, InputError
from memsys.runtimes import runtime_for

Source = torch.Tensor | np.ndarray | str | os.PathLike


class Rows(NamedTuple):
    """Rows to be placed: `fill` writes all of them into a contiguous tensor of that dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    fill: Callable[[torch.Tensor], object]


def rows_of(source: Source, name: str | None = None) -> Rows:
    """The rows of a source; `name` picks the tensor of a .safetensors file with several.

    Raises DtypeError for what holds no rows, InputError for a tensor without dimensions or an unknown name,
    CorruptionError for a bad file and SpillError for one that can't be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return _rows_of_file(os.fspath(source), name)
    tensor = as_tensor(source)
    return Rows(tensor.dtype, tuple(tensor.shape), lambda target: target.copy_(tensor))


def as_tensor(source: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The source as a plain CPU tensor, uncopied; typed errors for what can't be a table."""
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    if not isinstance(source, torch.Tensor):
        raise DtypeError(f"a table: wanted a tensor, an ndarray or a path, found {type(source).__name__}; "
                         "convert it with torch.as_tensor")  # fmt: skip
    tensor = source.detach()
    if tensor.device.type != "cpu" or not _tensor.is_plain(tensor):
        raise InputError(f"a table: wanted a dense CPU tensor, found {tensor.layout} on {tensor.device}; "
                         "call .to_dense() or .cpu() first")  # fmt: skip
    if tensor.dim() == 0:
        raise InputError("a table: wanted rows along dimension 0, found a tensor of no dimensions; use x[None]")
    return tensor.resolve_conj().resolve_neg()


def _from_array(array: np.ndarray) -> torch.Tensor:
    try:
        # A read-only array would draw a warning about writes that never happen here; torch refuses reversed ones.
        is_fit = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
        return torch.from_numpy(array if is_fit else _writable(array))
    except (TypeError, ValueError) as error:
        raise DtypeError(f"a table: torch has no dtype for an array of {array.dtype} ({error}); "
                         "convert it with .astype") from None  # fmt: skip


def _writable(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=True)


def _rows_of_file(path: str, name: str | None) -> Rows:
    runtime, _ = runtime_for(torch.device("cpu"))
    reader = _C.TensorReader(runtime, os.path.realpath(path))
    tensors = reader.tensors
    names = [tensor["name"] for tensor in tensors]
    if name is None and len(tensors) != 1:
        raise InputError(f"{path} holds {len(tensors)} tensors; name one: {', '.join(names[:20])}")
    if name is not None and name not in names:
        raise InputError(f"{path} holds no tensor {name!r}; name one of: {', '.join(names[:20])}")
    which = 0 if name is None else names.index(name)
    entry = tensors[which]
    shape, dtype = tuple(entry["shape"]), DTYPES.get(entry["dtype"])
    if dtype is None or len(shape) == 0:
        raise InputError(f"{path}: wanted rows, found {entry['dtype']} of shape {list(shape)}; save another tensor")

    def fill(target: torch.Tensor) -> None:
        if entry["is_row_major"]:
            reader.read(which, _tensor.pointer_of(target))
        else:  # Fortran order: what lies in the file is the transpose
            columns = torch.empty(tuple(reversed(shape)), dtype=dtype)
            reader.read(which, _tensor.pointer_of(columns))
            target.copy_(columns.permute(*reversed(range(len(shape)))))

    return Rows(dtype, shape, fill)
