"""Rows of a feed-forward network that are read from its bundle when they are wanted, after "LLM in a flash".

The core keeps a matrix of few rows a layer (which stay is the policy's choice); here they become a weight again: all
of it, in the dense weight's own shape and strides and zero but for the rows wanted, or just the rows that are there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memsys import _C, _tensor
from memsys.budget import available_host_bytes, format_bytes, parse_budget
from memsys.errors import BudgetError, CorruptionError, InputError, UnsupportedError
from memsys.runtimes import runtime_for

if TYPE_CHECKING:
    from memsys.weights.checked import Weights

POLICIES = ("window", "hot", "window+hot", "lru")
LAYOUTS = ("zero_filled", "compacted")
_CPU = torch.device("cpu")
_PAGE_BYTES = 4096
_MAX_RUN_BYTES = 128 * 1024


class BundlePlace(NamedTuple):
    """Where a network's bundle lies: row i holds `parts` one after the other, each of `columns` numbers, then a pad."""

    file: object  # a _C.WeightFile
    offset_bytes: int
    rows: int
    columns: int
    dtype: torch.dtype
    parts: tuple[str, ...]
    stride_bytes: int
    unit_bytes: int  # what a row is read in: the span of one checksum

    @property
    def part_bytes(self) -> int:
        return self.columns * self.dtype.itemsize

    def dense_shape(self, is_by_row: bool) -> tuple[int, int]:
        """The shape of a dense weight that has a neuron a row, or else a column."""
        return (self.rows, self.columns) if is_by_row else (self.columns, self.rows)

    @classmethod
    def of(cls, weights: Weights, name: str) -> BundlePlace:
        """Where an open file has the bundle `name`."""
        bundle, entry = weights.bundles[name], weights.entry(name)
        return cls(entry.file, entry.offset, bundle.rows, bundle.columns, entry.dtype, bundle.parts,
                   bundle.stride_bytes, bundle.unit_bytes)  # fmt: skip


class KeepRule(NamedTuple):
    """Which rows stay: those of the last `window_tokens` steps, `hot` ones once they came, or the last used."""

    policy: str = "window"
    window_tokens: int = 4
    hot: tuple[int, ...] = ()

    def checked(self) -> KeepRule:
        if self.policy not in POLICIES:
            raise InputError(f"policy: wanted one of {', '.join(POLICIES)}, found {self.policy!r}")
        if "hot" in self.policy and not self.hot:
            raise InputError(f"policy {self.policy!r}: wanted the ids of hot rows, found none; pass hot=, or use "
                             "policy='window'")  # fmt: skip
        return self


class DenseScratch:
    """A weight of the dense one's own shape and strides, zero but for the rows of the network that filled it last."""

    def __init__(self, budget: object, shape: tuple[int, ...], is_by_row: bool, dtype: torch.dtype) -> None:
        bytes_ = shape[0] * shape[1] * dtype.itemsize
        if not budget.try_reserve(bytes_):
            raise BudgetError(f"device_budget: the zero-filled layout needs {format_bytes(bytes_)} for a weight of "
                              f"{list(shape)}, and {format_bytes(budget.left_bytes)} are left; give more, or use "
                              "layout='compacted'")  # fmt: skip
        with torch.inference_mode(False):  # written to in both modes
            self.weight = torch.zeros(shape, dtype=dtype)
        self._is_by_row = is_by_row
        self._filled: list[Tensor] = []
        self.owner: object = None

    def empty(self) -> None:
        """Zero everywhere."""
        self.owner = None
        if self._is_by_row:
            for ids in self._filled:
                self.weight.index_fill_(0, ids, 0)
        elif self._filled:
            self.weight.zero_()  # columns meet nearly every cache line: one sweep is several times faster
        self._filled.clear()

    def put(self, ids: Tensor, rows: Tensor) -> None:
        """Row rows[i] becomes that of neuron ids[i]."""
        self._filled.append(ids)
        if self._is_by_row:
            self.weight.index_copy_(0, ids, rows)
        else:
            self.weight.index_copy_(1, ids, rows.t().contiguous())


class RowPool:
    """What the networks of one model share: the staging of reads, the budget, the dense scratch.

    device_budget: bytes for all of it and for every matrix of rows; None counts only. One thread runs a model.
    """

    def __init__(self, *, device_budget: int | str | None = None, max_row_bytes: int = 0) -> None:
        runtime, _ = runtime_for(_CPU)
        budget = parse_budget(device_budget, available_host_bytes)
        self.reader = _C.RowReader(
            runtime,
            max_run_bytes=max(_MAX_RUN_BYTES, max_row_bytes),
            device_budget_bytes=-1 if budget is None else budget,
        )
        self.lock = threading.RLock()
        self._scratches: dict[tuple, DenseScratch] = {}

    @property
    def budget(self) -> object:
        return self.reader.budget

    def scratch(self, part: str, place: BundlePlace, is_by_row: bool) -> DenseScratch:
        """The one scratch of all networks of this shape and dtype, for this part. Raises BudgetError."""
        shape = place.dense_shape(is_by_row)
        key = (part, shape, is_by_row, place.dtype)
        if key not in self._scratches:
            self._scratches[key] = DenseScratch(self.budget, shape, is_by_row, place.dtype)
        return self._scratches[key]

    def capacity_for(self, places: Sequence[BundlePlace], part_count: int) -> int:
        """How many rows each of these networks may keep, so that all of them fit what the budget has left."""
        page_bytes = len(places) * _PAGE_BYTES  # each matrix is rounded up
        row_bytes = sum(place.part_bytes * part_count for place in places)
        left_bytes = self.budget.left_bytes
        capacity = min(min(place.rows for place in places), (left_bytes - page_bytes) // row_bytes)
        if capacity < 1:
            raise BudgetError(f"device_budget: {format_bytes(left_bytes)} are left for rows, and a row of each of "
                              f"{len(places)} networks takes {format_bytes(row_bytes + page_bytes)}; give "
                              "more")  # fmt: skip
        return capacity


class StreamedRows:
    """The rows of one network: `parts` of its bundle, `capacity_rows` of them in memory."""

    def __init__(
        self, pool: RowPool, place: BundlePlace, parts: Sequence[str], *, capacity_rows: int, rule: KeepRule
    ) -> None:
        rule = rule.checked()
        self.pool, self.place, self.parts, self.rule = pool, place, tuple(parts), rule
        if not all(part in place.parts for part in parts):
            raise InputError(f"bundle: wanted the parts {tuple(parts)}, found {place.parts}; pack the model again")
        offsets = [place.parts.index(part) * place.part_bytes for part in parts]
        self.core = _C.RowStore(
            reader=pool.reader,
            file=place.file,
            offset=place.offset_bytes,
            row_count=place.rows,
            stride_bytes=place.stride_bytes,
            unit_bytes=place.unit_bytes,
            parts=[(offset, place.part_bytes) for offset in offsets],
            capacity_rows=min(capacity_rows, place.rows),
            keep=_C.RowKeep.lru if rule.policy == "lru" else _C.RowKeep.window,
            window_steps=rule.window_tokens if "window" in rule.policy else 1,
            hot=list(rule.hot) if "hot" in rule.policy else [],
        )
        shape = (self.core.capacity_rows, len(parts) * place.columns)
        self._matrix = _tensor.tensor_over(self.core.matrix(), place.dtype, shape)
        self._neurons = _tensor.tensor_over(self.core.neurons(), torch.int64, shape[:1])
        self._last: tuple[Tensor, Tensor] | None = None
        self.wide_step_count = 0  # steps with more active rows than there is room for, done in several goes

    def matrix_of(self, part: str) -> Tensor:
        """(capacity_rows, columns): a view of the resident rows' `part`; valid until the next step."""
        begin = self.parts.index(part) * self.place.columns
        return self._matrix[:, begin : begin + self.place.columns]

    def step(self, ids: Tensor) -> Tensor:
        """Makes `ids` (int64, ascending) resident; returns the matrix's row of each. Raises what reading raises."""
        if self._last is not None and self._last[0] is ids:
            return self._last[1]  # the same set again, of the same call: no step of its own in the window
        self._last = None
        contiguous = ids.contiguous()
        rows = torch.empty_like(contiguous)
        self.core.step(_tensor.pointer_of(contiguous), ids.numel(), _tensor.pointer_of(rows))
        self._last = ids, rows
        return rows

    def goes(self, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids, rows) of as many ids at a time as there is room for: usually all of them at once."""
        capacity = self.core.capacity_rows
        self.wide_step_count += ids.numel() > capacity
        for some in ids.split(capacity) if ids.numel() > capacity else (ids,):
            yield some, self.step(some)

    def resident(self, ids: Tensor) -> Tensor | None:
        """The neurons of the matrix's first rows, one a row, after making `ids` resident: all that are there, so that
        no row need be copied. None where `ids` do not fit."""
        if ids.numel() > self.core.capacity_rows:
            return None
        self.step(ids)
        return self._neurons[: self.core.resident_count]

    def stats(self) -> dict[str, int]:
        """What the store counts, and `resident_bytes`, `capacity_bytes` and `wide_step_count`."""
        row_bytes = self.core.row_bytes
        return {
            **self.core.stats(),
            "resident_bytes": self.core.resident_count * row_bytes,
            "capacity_bytes": self.core.capacity_rows * row_bytes,
            "wide_step_count": self.wide_step_count,
        }

    def __reduce__(self) -> tuple[object, ...]:
        raise UnsupportedError("rows streamed from a file are neither copied nor pickled; make the model anew, and "
                               "stream its rows again")  # fmt: skip


def active_ids(values: Tensor) -> Tensor:
    """The last dimension's places that hold anything but 0 in any row: int64, ascending. NaN is not 0."""
    flat = values.reshape(-1, values.shape[-1])
    return (flat != 0).any(0).nonzero().flatten()


def expect_only(values: Tensor, ids: Tensor, name: str) -> None:
    """Raises CorruptionError if `values` has anything but 0 at a place that is not in `ids`."""
    extra = (values.reshape(-1, values.shape[-1]) != 0).any(0)
    extra[ids] = False
    if extra.any():
        raise CorruptionError(f"{name}: row {int(extra.nonzero()[0])} is active, and its gate was not; the network is "
                              "not down(relu(gate(x)) * up(x)): do not stream its rows")  # fmt: skip
