"""Node features in host memory for PyTorch Geometric: a FeatureStore of HostTables, which NeighborLoader draws from.

A Data object's features are gathered for each batch by torch.index_select. This store gives NeighborLoader the same
rows, gathered by memsys.HostTable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import memsys
from memsys.errors import InputError, UnsupportedError


class _AbsentError(UnsupportedError, ImportError):
    """What this module needs is not installed; also an ImportError, since an import raises it."""


try:
    from torch_geometric.data import FeatureStore, TensorAttr
except ImportError as error:
    raise _AbsentError(
        f"memsys.integrations.pyg needs torch_geometric, which does not import ({error}); pip install torch_geometric, "
        "and for its NeighborLoader pyg-lib, or torch-scatter and torch-sparse"
    ) from error


class _RowsAttr(TensorAttr):
    """A TensorAttr that takes an ndarray as its index, whose `!=` has no single truth value."""

    @classmethod
    def cast(cls, *args: Any, **kwargs: Any) -> _RowsAttr:
        attr = super().cast(*args, **kwargs)
        return attr if isinstance(attr, cls) else cls(*attr)

    def is_set(self, key: str) -> bool:
        # The class's default is the mark of an unset field.
        return getattr(self, key) is not getattr(TensorAttr, key)


class HostFeatureStore(FeatureStore):
    """A torch_geometric FeatureStore that keeps each attribute as a memsys.HostTable and gathers rows from it.

        store = HostFeatureStore()
        store["paper", "x", None] = features      # a HostTable, or what makes one: tensor, ndarray, path of a file
        store["paper", "y", None] = labels        # [rows]: a table whose rows are single elements
        loader = NeighborLoader((store, graph), num_neighbors=[10, 10], input_nodes=("paper", train), batch_size=1024)

    In a homogeneous graph the group is None: `store[None, "x", None] = features`. `graph` is any GraphStore whose
    edges know their size, for instance `Data()` after `put_edge_index((row, col), layout="coo", size=(nodes, nodes))`.
    For each batch NeighborLoader fetches every attribute of the group by node: put there what has a row per node.

    `store[group, name, index]` and get_tensor give rows. Index None gives all of them, an int or a slice some, as
    views of the table's memory; a tensor or ndarray, of int32 or int64 (negative ones count from the end) or a mask
    [rows], gives a new tensor [*index shape, *row shape].

    With workers: a table is not copied to a spawned process (UnsupportedError) unless it was made from a path, and in
    a forked one it gathers with one thread. filter_per_worker=False has the workers sample only and this process
    fetch, with all its threads and with outputs whose memory is used again, as does num_workers=0.

    Raises: KeyError for an attribute that is not there; RangeError (an IndexError) and DtypeError (a TypeError) for an
    index; InputError for rows put into an attribute that is not there yet; on putting, also what HostTable raises.
    """

    def __init__(self) -> None:
        super().__init__(tensor_attr_cls=_RowsAttr)
        self._tables: dict[tuple[Any, str], memsys.HostTable] = {}

    def _put_tensor(self, tensor: memsys.HostTable | torch.Tensor | np.ndarray | str, attr: TensorAttr) -> bool:
        """Makes `tensor` the attribute, or with an index writes these rows of it."""
        key = attr.group_name, attr.attr_name
        if attr.index is None:
            self._tables[key] = tensor if isinstance(tensor, memsys.HostTable) else memsys.HostTable(tensor)
            return True
        if key not in self._tables:
            raise InputError(f"HostFeatureStore: rows were put into {key}, which is not in the store (there are: "
                             f"{self._names()}); put the whole attribute first, with index None")  # fmt: skip
        table, rows = self._tables[key], torch.as_tensor(tensor)
        index = torch.arange(len(table))[attr.index] if isinstance(attr.index, slice) else torch.as_tensor(attr.index)
        table.update_rows(index.nonzero().squeeze(1) if index.dtype is torch.bool else index.flatten(), rows)
        return True

    def update_tensor(self, tensor: Any, *args: Any, **kwargs: Any) -> bool:
        """Replaces an attribute, or with an index writes these rows of it. As put_tensor, which does both."""
        return self.put_tensor(tensor, *args, **kwargs)

    def _get_tensor(self, attr: TensorAttr) -> torch.Tensor:
        table = self._table(attr)
        return table.tensor if attr.index is None else table[attr.index]

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return self._tables.pop((attr.group_name, attr.attr_name), None) is not None

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...] | None:
        if (attr.group_name, attr.attr_name) not in self._tables:
            return None
        if attr.index is None:
            return tuple(self._table(attr).shape)
        return tuple(self._get_tensor(attr).shape)

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Group and name of each attribute, in the order of their first put; new objects, for loaders write to them."""
        return [_RowsAttr(group_name=group, attr_name=name) for group, name in self._tables]

    def _table(self, attr: TensorAttr) -> memsys.HostTable:
        try:
            return self._tables[attr.group_name, attr.attr_name]
        except KeyError:
            raise KeyError(f"HostFeatureStore has no attribute ({attr.group_name!r}, {attr.attr_name!r}); "
                           f"there are: {self._names()}") from None  # fmt: skip

    def _names(self) -> str:
        return ", ".join(map(repr, self._tables)) or "none"

    def __repr__(self) -> str:
        tables = (f"{key}: {tuple(table.shape)} {table.dtype}" for key, table in self._tables.items())
        return f"{type(self).__name__}({', '.join(tables)})"
