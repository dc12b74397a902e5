"""Rows that belong to one index, summed: always in the order given, so that the same run gives the same bits."""

from __future__ import annotations

import torch


def positive(index: torch.Tensor, row_count: int) -> torch.Tensor:
    """The index as int64 with negative ones counted from the start."""
    index = index.long()
    return torch.where(index < 0, index + row_count, index)


def sum_duplicates(index: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct indices, ascending, and for each the sum of its rows, added in the order given."""
    distinct, counts = torch.unique(index, return_counts=True)
    if distinct.numel() == index.numel():
        return distinct, rows[torch.argsort(index)]
    ordered = rows[torch.argsort(index, stable=True)]
    if not ordered.is_floating_point() or ordered.numel() == 0:
        summed = ordered.new_zeros(distinct.numel(), *rows.shape[1:])
        owner = torch.repeat_interleave(torch.arange(distinct.numel(), device=index.device), counts)
        return distinct, summed.index_add_(0, owner, ordered)
    return distinct, torch.segment_reduce(ordered, "sum", lengths=counts, axis=0, unsafe=True)
