"""The gather on a GPU: its kernel reads the rows where they lie in host memory, each 128-byte line of a row once.

After PyTorch-Direct (arXiv 2103.03330), with the alignment taken from the real address, not from the offset in the
table. Not yet run on a device: the kernel is replayed on the CPU, lane by lane; this file is not tested without a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memsys import _C, _tensor
from memsys.features.index import out_of_range
from memsys.runtimes import runtime_for

if TYPE_CHECKING:
    from memsys.features.table import HostTable

_NO_POSITION = -1  # all bits set: the kernel keeps the least unsigned position
# Blocks of 512 threads with 32 KiB in flight each: more than a PCIe 5 link needs, on a few multiprocessors.
_MAX_BLOCKS = 32


class DeviceWork:
    """A gather under way on a stream of its own. It holds the table, and dropping it half-way waits for it."""

    def __init__(
        self, held: tuple[object, ...], index: torch.Tensor, rows: torch.Tensor, bad: torch.Tensor, row_count: int
    ) -> None:
        self._held = held  # the pages that the kernel reads
        self._index, self._rows, self._bad, self._row_count = index, rows, bad, row_count
        self._event = torch.cuda.Event()
        self._event.record()

    def is_done(self) -> bool:
        """Whether wait() would return at once."""
        return self._event.query()

    def wait(self) -> torch.Tensor:
        """The rows, which later work of the current stream may read; raises RangeError as gather does."""
        self._order()
        self._event.synchronize()
        position = int(self._bad)
        if position != _NO_POSITION:
            raise out_of_range(self._index, position, self._row_count)
        return self._rows

    def _order(self) -> None:
        _tensor.wait_for(self._event, self._rows.device)

    def __del__(self) -> None:
        if "_event" in self.__dict__ and not self._event.query():
            self._event.synchronize()  # host pages, too, are about to be given back: no stream can wait for that


class DeviceRoad:
    """One table's road to one device: registered pages, and a stream whose kernels go first."""

    def __init__(self, table: HostTable, core: object, device: torch.device) -> None:
        runtime, self._backend = runtime_for(device)
        core.open_to(runtime, table.tensor.is_pinned())
        self._held = (core, table.tensor)
        self._core, self._row_shape, self._row_count = core, table.shape[1:], len(table)
        self._dtype, self._device = table.dtype, device
        self._stream = torch.cuda.Stream(device, priority=-1)

    def gather(self, index: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """On the current stream; waits for it, to tell an index out of range."""
        with torch.cuda.device(self._device):
            return self._launch(index, self._rows_for(index, out)).wait()

    def start(self, index: torch.Tensor, out: torch.Tensor | None) -> DeviceWork:
        """On the road's own stream, after what the current one has done so far."""
        with torch.cuda.device(self._device):
            rows = self._rows_for(index, out)
            _tensor.follow(self._stream, self._device)
            with torch.cuda.stream(self._stream):
                return self._launch(index, rows)

    def _rows_for(self, index: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        if out is not None:
            return out
        return torch.empty((index.numel(), *self._row_shape), dtype=self._dtype, device=self._device)

    def _launch(self, index: torch.Tensor, rows: torch.Tensor) -> DeviceWork:
        bad = torch.full((1,), _NO_POSITION, dtype=torch.int64, device=self._device)
        self._core.gather_on_device(
            index=_tensor.pointer_of(index),
            index_type=_C.IndexType.int32 if index.dtype is torch.int32 else _C.IndexType.int64,
            index_count=index.numel(),
            rows=_tensor.pointer_of(rows),
            bad_position=_tensor.pointer_of(bad),
            max_blocks=_MAX_BLOCKS,
            stream=self._backend.current_stream(),
        )
        _tensor.note_written(rows)
        return DeviceWork(self._held, index, rows, bad, self._row_count)
