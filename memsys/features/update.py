"""Changes to the rows of a table: set, or added to, without touching the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from memsys.errors import DtypeError, InputError
from memsys.features.duplicates import positive
from memsys.features.index import Index, flat_index, out_of_range

if TYPE_CHECKING:
    from memsys.features.table import HostTable


def checked(table: HostTable, index: Index, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both on the CPU, of fitting shapes, the index counted from the start; typed errors otherwise, nothing written."""
    flat = flat_index(index).cpu().long()
    wanted = (flat.numel(), *table.shape[1:])
    if not isinstance(rows, torch.Tensor):
        raise DtypeError(f"rows: wanted a tensor, found {type(rows).__name__}; convert it with torch.as_tensor")
    if tuple(rows.shape) != wanted or rows.dtype is not table.dtype:
        raise InputError(f"rows: wanted {table.dtype} of shape {list(wanted)}, found {rows.dtype} of shape "
                         f"{list(rows.shape)}; convert them first")  # fmt: skip
    is_bad = (flat >= len(table)) | (flat < -len(table))
    if is_bad.any():
        raise out_of_range(flat, int(is_bad.nonzero()[0]), len(table))
    return positive(flat, len(table)), rows.detach().cpu()


def set_rows(table: HostTable, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Of several rows for one index the last one stays."""
    ordered = torch.argsort(index, stable=True)
    sorted_index = index[ordered]
    is_last = torch.ones_like(sorted_index, dtype=torch.bool)
    is_last[:-1] = sorted_index[1:] != sorted_index[:-1]
    chosen = ordered[is_last]
    table.tensor[index[chosen]] = rows[chosen]
