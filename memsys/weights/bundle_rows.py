"""The row source of a packed file: a bundle tensor, whose rows hold all that a neuron needs and are read on demand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from memsys import _tensor
from memsys._dtypes import DTYPES
from memsys.errors import InputError, UnsupportedError
from memsys.weights.checked import Weights

# Reads in flight. Each blocks a thread, which holds no lock of Python's meanwhile.
_LANES = 16


class BundleRows:
    """Rows of the bundle `name`, checked as the file's others are. `row_count` and `read_bytes` count what was asked
    for; neighbours are read together, and nothing between them."""

    def __init__(self, weights: Weights, name: str) -> None:
        if name not in weights.bundles:
            raise InputError(f"{weights.path}: wanted a bundle {name!r}, found {list(weights.bundles)[:5]}; pack the "
                             "model with bundle_ffn=True")  # fmt: skip
        self._bundle, self._entry = weights.bundles[name], weights.entry(name)
        if self._bundle.parts != ("up", "down"):
            raise UnsupportedError(f"{weights.path}: {name!r} has {self._bundle.parts}, but a masked backward needs an "
                                   "ungated FFN; use the layer window for it")  # fmt: skip
        self.row_count = self.read_bytes = 0

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of Up, columns of Down as rows), each (len(ids), width), of ascending int64 `ids` on the CPU.

        Raises CorruptionError, naming file and offset, where bytes are not those that were written.
        """
        stride = self._bundle.stride_bytes
        room = torch.empty(len(ids), stride, dtype=torch.uint8)

        def read(run: tuple[int, int, int]) -> None:
            place, first, count = run
            self._entry.file.read(
                self._entry.offset + first * stride, count * stride, _tensor.pointer_of(room) + place * stride
            )

        runs = list(runs_of(ids))
        if len(runs) > 1:
            with ThreadPoolExecutor(min(_LANES, len(runs))) as pool:
                list(pool.map(read, runs))
        elif runs:
            read(runs[0])
        self.row_count += len(ids)
        self.read_bytes += room.nbytes
        columns, rows = self._bundle.columns, room.view(DTYPES[self._bundle.dtype])
        return rows[:, :columns], rows[:, columns : 2 * columns]

    def stamp(self) -> object:
        """The file's own identity is checked at every read."""
        return None


def runs_of(ids: Tensor) -> Iterator[tuple[int, int, int]]:
    """(place in `ids`, first id, count) of each run of ids that follow each other."""
    if len(ids) == 0:
        return
    breaks = (ids.diff() != 1).nonzero().flatten() + 1
    places = [0, *breaks.tolist(), len(ids)]
    for begin, end in itertools.pairwise(places):
        yield begin, int(ids[begin]), end - begin
