"""The differentiable gather: its gradient is the rows that were read, never a table of zeros.

torch.index_select's backward makes a dense gradient of the table's size, which is impossible for a table that does not
fit; this one makes a sparse one, duplicates summed in the order in which they were gathered, so that a run repeats.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from memsys.errors import DtypeError
from memsys.features.duplicates import positive, sum_duplicates
from memsys.features.index import Index, flat_index
from memsys.features.table import HostTable


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter: torch.Tensor, index: torch.Tensor, table: HostTable) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.table_shape = table.shape
        return table.gather(index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (index,) = ctx.saved_tensors
        where, rows = sum_duplicates(positive(index, ctx.table_shape[0]), grad_rows)
        # The parameter lives on the host, whatever device its rows went to.
        gradient = torch.sparse_coo_tensor(
            where.cpu()[None], rows.cpu(), ctx.table_shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None, None


def gather(table: HostTable, index: Index) -> torch.Tensor:
    """Rows of the table at a 1-D `index`, as table.gather gives them, and differentiable in table.parameter.

    After backward, table.parameter.grad is a sparse tensor, as of torch.nn.Embedding(sparse=True), which
    torch.optim.SparseAdam takes; table.grad_rows() is the same as (index, rows). Under no_grad this is table.gather.
    Raises what gather raises, and DtypeError for a table of integers under grad mode.
    """
    if not torch.is_grad_enabled():
        return table.gather(index)
    if not (table.dtype.is_floating_point or table.dtype.is_complex):
        raise DtypeError(f"gather: a table of {table.dtype} has no gradient; use table.gather, or torch.no_grad()")
    flat = flat_index(index)
    # An array's memory may change before backward without autograd's notice; a tensor's may not.
    return _Gather.apply(table.parameter, flat if isinstance(index, torch.Tensor) else flat.clone(), table)
