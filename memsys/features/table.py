"""HostTable: rows that stay in host memory, gathered from there. The public face of features.

After PyTorch-Direct (Min et al., VLDB 2021, arXiv 2103.03330): the rows a step needs are read where they lie, at
aligned addresses; on a CPU the same table is gathered by prefetched vector copies into outputs that are used again.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch

from memsys import _C, _tensor
from memsys.errors import DtypeError, InputError, UnsupportedError
from memsys.features import choice, update, work
from memsys.features.device_road import DeviceRoad, DeviceWork
from memsys.features.duplicates import sum_duplicates
from memsys.features.index import Index, dim0_index, flat_index, out_of_range
from memsys.features.report import TableReport, report_of
from memsys.features.sources import Source, as_tensor, rows_of
from memsys.features.work import GatherWork
from memsys.runtimes import runtime_for

_CPU = torch.device("cpu")
_INT32, _INT64 = _C.IndexType.int32, _C.IndexType.int64


class HostTable:
    """Rows along dimension 0, in host memory.

    source: a CPU tensor, an ndarray, or the path of a .npy or .safetensors file. It is copied once, onto huge pages
    at an aligned base, in exactly its size; `adopt=True` takes a tensor or array where it lies instead, without a copy
    (its rows must be contiguous; its base may be misaligned and its pages small: `report()` says what that costs).
    name: which tensor of a .safetensors file. helper_count: threads beside the caller's (None: as torch has).

    Any dtype, any row shape; bytes move, not types. Threads may gather at once; changes to rows (update_rows, an
    optimizer's step) are the caller's to keep apart from each other and from gathers. In a forked child a table can
    still be read, by one thread. Raises DtypeError, InputError, BudgetError (no memory), and for files CorruptionError
    and SpillError.
    """

    def __init__(
        self, source: Source, *, adopt: bool = False, name: str | None = None, helper_count: int | None = None
    ) -> None:
        self._owner_pid = os.getpid()
        self._path = os.path.realpath(source) if isinstance(source, (str, os.PathLike)) else None
        self._name = name
        helpers = torch.get_num_threads() - 1 if helper_count is None else helper_count
        pool = _tensor.thread_pool_address() if helper_count is None else 0
        runtime, _ = runtime_for(_CPU)
        if adopt:
            self._adopt(source, runtime, helpers, pool)
            return
        rows = rows_of(source, name)
        row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
        self._core = _C.RowTable(runtime, rows.shape[0], row_bytes, helpers, pool=pool)
        self._adopted = None
        empty = rows.shape[0] * row_bytes == 0
        self.tensor = (
            torch.empty(rows.shape, dtype=rows.dtype)
            if empty
            else _tensor.tensor_over(self._core.memory(), rows.dtype, rows.shape)
        )
        rows.fill(self.tensor)
        self._describe(row_bytes)

    def _adopt(self, source: Source, runtime: object, helpers: int, pool: int) -> None:
        if self._path is not None:
            raise InputError("adopt=True: wanted a tensor or an array in memory, found a path; leave adopt out")
        tensor = as_tensor(source)
        place = source.ctypes.data if isinstance(source, np.ndarray) else _tensor.pointer_of(source)
        if place != _tensor.pointer_of(tensor):
            raise InputError("adopt=True: wanted memory that can be read where it lies, found a read-only, reversed, "
                             "foreign-endian or conjugated one; leave adopt out, and it is copied")  # fmt: skip
        row_bytes = math.prod(tensor.shape[1:]) * tensor.element_size()
        is_packed = tensor.shape[0] == 0 or tensor[0].is_contiguous()
        stride_bytes = tensor.stride(0) * tensor.element_size()
        if not is_packed or (tensor.shape[0] > 1 and stride_bytes < row_bytes):
            raise InputError(f"adopt=True: wanted contiguous rows, found strides {tensor.stride()} for shape "
                             f"{list(tensor.shape)}; leave adopt out, and the rows are copied")  # fmt: skip
        self._core = _C.RowTable(
            runtime,
            tensor.shape[0],
            row_bytes,
            helpers,
            _tensor.pointer_of(tensor),
            max(stride_bytes, row_bytes),
            pool,
        )
        self._adopted = source  # its memory is read until the table dies
        self.tensor = tensor
        self._describe(row_bytes)

    def _describe(self, row_bytes: int) -> None:
        self.dtype = self.tensor.dtype
        self.shape = self.tensor.shape
        self.row_bytes = row_bytes
        self._address = self._core.address
        self._parameter: torch.Tensor | None = None
        self._version = _tensor.version_of(self.tensor)
        self._roads: dict[torch.device, DeviceRoad] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"HostTable({list(self.shape)}, {self.dtype}, {len(self) * self.row_bytes / 2**20:.1f} MiB)"

    def __reduce__(self) -> tuple[object, ...]:
        if self._path is None:
            raise UnsupportedError("a table is not pickled: it would be copied to every process; save it as .npy and "
                                   "make it from that path, or make it where it is used")  # fmt: skip
        if _tensor.version_of(self.tensor) != self._version:
            raise UnsupportedError(f"a table is pickled by its path, but its rows have changed since {self._path} was "
                                   "read; save table.tensor, and make a table from that file")  # fmt: skip
        return _from_path, (self._path, self._name)

    # Rows ----------------------------------------------------------------------------------------------------------

    def gather(self, index: Index, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows at `index`, of shape [len(index), *row shape], on the index's device: x[index] for a 1-D index.

        index: int32 or int64; negative ones count from the end. out: a contiguous tensor of that shape and the
        table's dtype, written and returned; without it the rows come from a pool of outputs, whose memory is used
        again once nobody holds them. Raises RangeError (an IndexError, with position and value), and then has written
        nothing; DtypeError (a TypeError); InputError (a ValueError) for a bad `out`.
        """
        return self._gather(index, out, torch.get_num_threads())

    def _gather_alone(self, index: Index, out: torch.Tensor | None) -> torch.Tensor:
        """As gather, on the calling thread alone: the others compute."""
        return self._gather(index, out, 1)

    def gather_async(self, index: Index, out: torch.Tensor | None = None) -> GatherWork | DeviceWork:
        """Starts gather(index, out) beside the caller: `.wait()` gives the rows, or raises. It may be dropped at any
        time; nobody changes index or out before."""
        flat = flat_index(index)
        if flat.device.type != "cpu":
            return self._device_road(flat.device).start(flat, out if out is None else self._checked_out(out, flat))
        if out is not None:
            _tensor.note_written(self._checked_out(out, flat))  # from now on, whenever the bytes arrive
        return work.start(self, flat, out)

    def __getitem__(self, index: Index | int | slice) -> torch.Tensor:
        """Tensor indexing on dimension 0: integers and slices give views; masks and indices of any shape give rows."""
        if isinstance(index, (int, slice)) and not isinstance(index, bool):
            return self.tensor[index]
        flat, shape = dim0_index(index, len(self))
        rows = self.gather(flat)
        return rows if len(shape) == 1 else rows.reshape((*shape, *self.shape[1:]))

    def _gather(self, index: Index, out: torch.Tensor | None, thread_count: int) -> torch.Tensor:
        index = flat_index(index)
        if not index.is_cpu:
            return self._device_road(index.device).gather(index, out if out is None else self._checked_out(out, index))
        self._check_memory()
        count = index.numel()
        if len(self) == 0 and count > 0:
            raise out_of_range(index, 0, 0)  # before memory is taken for rows that can't be
        chosen = choice.choose(self.row_bytes, count, thread_count, self._is_child())
        rows = self._new_rows(count, chosen.is_pooled) if out is None else self._checked_out(out, index)
        position = self._core.gather(
            _tensor.pointer_of(index),
            _INT32 if index.dtype is torch.int32 else _INT64,
            count,
            _tensor.pointer_of(rows),
            chosen.thread_count,
        )
        if position >= 0:
            raise out_of_range(index, position, len(self))
        if out is not None:
            _tensor.note_written(out)
        return rows

    def _new_rows(self, count: int, is_pooled: bool) -> torch.Tensor:
        shape = (count, *self.shape[1:])
        if not is_pooled:
            return torch.empty(shape, dtype=self.dtype)
        return _tensor.tensor_over(self._core.allocate_rows(count * self.row_bytes), self.dtype, shape)

    def _checked_out(self, out: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        wanted = (index.numel(), *self.shape[1:])
        if not isinstance(out, torch.Tensor):
            raise DtypeError(f"out: wanted a tensor, found {type(out).__name__}; leave out away for a pooled one")
        fits = out.shape == wanted and out.dtype is self.dtype and out.device == index.device
        if not fits or not out.is_contiguous():
            raise InputError(
                f"out: wanted a contiguous {self.dtype} of shape {list(wanted)} on {index.device}, found {out.dtype} "
                f"of shape {list(out.shape)}, strides {out.stride()}, on {out.device}; make it with torch.empty"
            )
        if not _tensor.is_plain(out) or out.is_conj() or out.is_neg():
            raise InputError(f"out: wanted a plain dense tensor, found {type(out).__name__} of layout {out.layout}, "
                             f"conj {out.is_conj()}; make it with torch.empty")  # fmt: skip
        if out.requires_grad and torch.is_grad_enabled():
            raise InputError("out: found a tensor that requires grad; pass out.detach(), or use memsys.gather")
        if _overlap(out, self.tensor):
            raise InputError("out: found memory of the table itself; make it with torch.empty")
        if _overlap(out, index):
            raise InputError("out: found memory of the index; make it with torch.empty")
        return out

    # Training --------------------------------------------------------------------------------------------------------

    @property
    def parameter(self) -> torch.Tensor:
        """The table's rows as a leaf that requires grad: what memsys.gather is differentiable in, and what an optimizer
        for sparse gradients takes. Its gradient is sparse."""
        if self._parameter is None:
            self._parameter = self.tensor.detach().requires_grad_()
        return self._parameter

    def grad_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, rows) of the gradient since the last zero_grad: distinct indices, ascending; both on the CPU, and
        empty where there is none. Several gathers of one row are summed, in the order of their backwards."""
        gradient = None if self._parameter is None else self._parameter.grad
        if gradient is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, *self.shape[1:], dtype=self.dtype)
        if not gradient.is_sparse:
            raise InputError("grad_rows: wanted the sparse gradient of memsys.gather, found a dense one, of another "
                             "operation on table.parameter; use table.parameter.grad")  # fmt: skip
        index, rows = gradient._indices()[0], gradient._values()
        return (index, rows) if gradient.is_coalesced() else sum_duplicates(index, rows)

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        if self._parameter is not None:
            self._parameter.grad = None

    def update_rows(self, index: Index, rows: torch.Tensor) -> None:
        """Writes rows, of shape [len(index), *row shape] on any device; of several for one index the last one stays.
        Raises RangeError, DtypeError and InputError, and then has written nothing."""
        update.set_rows(self, *update.checked(self, index, rows))

    def scatter_add_(self, index: Index, rows: torch.Tensor) -> HostTable:
        """Adds rows to those at `index`, duplicates summed first, in the order given. Raises as update_rows does."""
        distinct, summed = sum_duplicates(*update.checked(self, index, rows))
        self.tensor[distinct] = self.gather(distinct).add_(summed)
        return self

    def _check_memory(self) -> None:
        if not self._is_there(self.tensor) or not (self._parameter is None or self._is_there(self._parameter)):
            raise InputError("gather: the table's memory was freed, moved or replaced (resize_, set_, .data); change "
                             "rows by update_rows, or make a new table")  # fmt: skip

    def _is_there(self, tensor: torch.Tensor) -> bool:
        is_same = _tensor.pointer_of(tensor) == self._address and _tensor.is_backed(tensor)
        return is_same or self.tensor.numel() == 0

    def _device_road(self, device: torch.device) -> DeviceRoad:
        self._check_memory()
        if device.type != "cuda" or self._is_child():
            raise UnsupportedError(
                f"gather: wanted an index on cpu or, in the process that made the table, on cuda, found {device} in "
                f"process {os.getpid()} of a table made in {self._owner_pid}; use .cpu(), or start workers by spawn"
            )
        if device not in self._roads:
            self._roads[device] = DeviceRoad(self, self._core, device)
        return self._roads[device]

    def report(self) -> TableReport:
        """What a gather from this table costs; print it."""
        return report_of(self, self._core, self._adopted is not None, 0 if self._is_child() else self._core.pool_bytes)

    def trim(self) -> int:
        """Gives pooled outputs that nobody holds back to the system; returns the bytes."""
        return 0 if self._is_child() else self._core.trim()

    def _is_child(self) -> bool:
        return os.getpid() != self._owner_pid


def _from_path(path: str, name: str | None) -> HostTable:
    return HostTable(path, name=name)


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    begin, other_begin = _tensor.pointer_of(one), _tensor.pointer_of(other)
    if begin <= other_begin:
        return other_begin < begin + _tensor.extent_of(one) and other.numel() > 0
    return begin < other_begin + _tensor.extent_of(other) and one.numel() > 0
