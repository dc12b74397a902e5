"""Rows of a sequence inside a tensor, and inside the bytes of a span.

A span is looked at as (outer, rows, inner_bytes): outer is 1 for [S, B, h], B for [B, S, h], B * H for a contiguous
[B, H, S, D], and 3 for q, k and v one after another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from memsys._tensor import Layout

# A run on one row is another run: a transposed tensor of one row is contiguous, a product with it no matrix product.
LEAST_ROWS = 2


class RowDim(NamedTuple):
    """Dimension `dim` of a tensor runs along the sequence: its size is outer * rows * inner (merged dimensions)."""

    dim: int
    outer: int
    inner: int

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view in which the rows are dimension `dim + 1` by themselves."""
        rows = tensor.shape[self.dim] // (self.outer * self.inner)
        return tensor.unflatten(self.dim, (self.outer, rows, self.inner))

    def rows(self, tensor: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """A view of rows [begin, end)."""
        return self.split(tensor).narrow(self.dim + 1, begin, end - begin)

    def row_count(self, size: int) -> int | None:
        """How many rows a dimension of this size has; None if it does not divide."""
        count, rest = divmod(size, self.outer * self.inner)
        return count if rest == 0 else None


class RowGeometry(NamedTuple):
    """How the rows lie in a span's bytes."""

    outer: int
    row_count: int
    inner_bytes: int

    @property
    def row_bytes(self) -> int:
        """What one position of the sequence takes of the span."""
        return self.outer * self.inner_bytes

    def prefix_bytes(self, first_rows: int) -> int:
        return self.outer * first_rows * self.inner_bytes


def first_rows(alpha: float, row_count: int) -> int:
    """How many rows a share `alpha` is: the next whole number, of 0.3 * 10 as well."""
    return min(row_count, math.ceil(alpha * row_count - 1e-9))


def geometry_of(layout: Layout, row_dim: RowDim, span_bytes: int) -> RowGeometry | None:
    """The rows of a span, told from one tensor over it; `layout.offset` counts from the span's begin. None if the bytes
    of one row do not lie together, row after row, throughout the span."""
    item_bytes = layout.dtype.itemsize
    rows = row_dim.row_count(layout.size[row_dim.dim])
    if rows is None:
        return None
    inner_stride = layout.stride[row_dim.dim]
    row_stride = inner_stride * row_dim.inner
    block = rows * row_stride
    if row_stride <= 0 or span_bytes % (block * item_bytes) != 0:
        return None
    last = layout.offset % block  # of the tensor's elements in row 0
    others = [(size, stride) for place, (size, stride) in enumerate(zip(layout.size, layout.stride, strict=True))
              if place != row_dim.dim and size > 1]  # fmt: skip
    others += [(row_dim.inner, inner_stride), (row_dim.outer, block)]
    for size, stride in others:
        if stride < row_stride:
            last += (size - 1) * stride
        elif size > 1 and stride % block != 0:
            return None
    if last >= row_stride:
        return None
    return RowGeometry(span_bytes // (block * item_bytes), rows, row_stride * item_bytes)
