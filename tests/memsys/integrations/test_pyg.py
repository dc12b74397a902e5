"""HostFeatureStore: torch_geometric's contract of a feature store, and NeighborLoaders that draw features from it."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import memsys

NODES, WIDTH = 50, 5


@pytest.fixture(scope="module")
def pyg():
    """memsys.integrations.pyg."""
    with warnings.catch_warnings():
        # torch_geometric scripts some of its classes, which torch calls deprecated.
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
        from memsys.integrations import pyg
    return pyg


@pytest.fixture
def store(pyg):
    return pyg.HostFeatureStore()


@pytest.fixture
def loader_of(pyg):
    """Makes NeighborLoaders; skips where torch_geometric has nothing to sample neighbors with."""
    from torch_geometric import typing
    from torch_geometric.loader import NeighborLoader

    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        pytest.skip("NeighborLoader needs pyg-lib, or torch-sparse with torch-scatter, and finds neither")

    def make(data, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*without a 'pyg-lib' installation")
            return NeighborLoader(data, batch_size=8, **options)

    return make


def features(rows: int = NODES, width: int = WIDTH) -> torch.Tensor:
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def edges(sources: int, targets: int, count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(side, (count,), generator=generator) for side in (sources, targets)])


INDICES = [
    pytest.param(None, id="all"),
    pytest.param(slice(None), id="full-slice"),
    pytest.param(slice(3, 30, 4), id="slice"),
    pytest.param(7, id="int"),
    pytest.param(-1, id="negative-int"),
    pytest.param(torch.tensor([4, 4, -1, 0]), id="int64"),
    pytest.param(torch.tensor([4, 4, -1, 0], dtype=torch.int32), id="int32"),
    pytest.param(torch.tensor([], dtype=torch.int64), id="none"),
    pytest.param(torch.arange(6).reshape(2, 3), id="matrix"),
    pytest.param(torch.arange(NODES) % 3 == 0, id="mask"),
    pytest.param(np.array([4, 4, -1, 0]), id="ndarray"),
    pytest.param(np.array([9]), id="ndarray-of-one"),
    pytest.param(np.arange(NODES) % 3 == 0, id="ndarray-mask"),
]


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("shape", [(WIDTH,), (), (2, 3)], ids=["rows", "elements", "matrices"])
def test_get_tensor_is_like_indexing_the_tensor(store, shape, index):
    from torch_geometric.data import TensorAttr

    x = torch.randn(NODES, *shape)
    store["paper", "x", None] = x
    expected = x if index is None else x[index]
    for got in (
        store["paper", "x", index],
        store["paper"]["x"][index],
        store.get_tensor("paper", "x", index),
        store.get_tensor(group_name="paper", attr_name="x", index=index),
        store.get_tensor(TensorAttr("paper", "x", index)),
    ):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    assert store.get_tensor_size("paper", "x", index) == tuple(expected.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_every_dtype(store, dtype):
    x = features().to(dtype)
    store[None, "x", None] = x
    index = torch.tensor([1, 0, 49])
    assert torch.equal(store[None, "x", index], x[index])


def test_what_is_put_may_be_an_array_a_file_or_a_table(store, tmp_path):
    array = features().numpy()
    np.save(tmp_path / "x.npy", array)
    table = memsys.HostTable(array)
    index = torch.tensor([3, 1])
    for value in (array, tmp_path / "x.npy", table):
        assert store.put_tensor(value, group_name=None, attr_name="x", index=None)
        assert torch.equal(store[None, "x", index], features()[index])
    assert store[None, "x", None].data_ptr() == table.tensor.data_ptr(), "a table is kept, not copied"


def test_whole_and_slice_are_views(store):
    store["paper", "x", None] = features()
    whole = store["paper", "x", None]
    assert store["paper", "x", slice(2, 9)].data_ptr() == whole[2:].data_ptr()


def test_convert_type_follows_the_index(store):
    store["paper", "x", None] = features()
    got = store.get_tensor("paper", "x", np.array([2, 4]), convert_type=True)
    assert isinstance(got, np.ndarray) and np.array_equal(got, features()[[2, 4]].numpy())


def test_multi_get_tensor(store):
    store["paper", "x", None], store["paper", "y", None] = features(), torch.arange(NODES)
    attrs = store.get_all_tensor_attrs()
    for attr in attrs:
        attr.index = torch.tensor([5, 6])
    x, y = store.multi_get_tensor(attrs)
    assert torch.equal(x, features()[5:7]) and y.tolist() == [5, 6]
    with pytest.raises(ValueError, match="not fully specified"):
        store.multi_get_tensor(store.get_all_tensor_attrs())


def test_attributes_are_listed_as_new_objects(store):
    relation = ("paper", "cites", "paper")
    for group, name in [("paper", "x"), (None, "x"), (relation, "weight"), ("paper", "y")]:
        store[group, name, None] = features()
    for _ in range(2):
        attrs = store.get_all_tensor_attrs()
        assert [(attr.group_name, attr.attr_name) for attr in attrs] == [
            ("paper", "x"), (None, "x"), (relation, "weight"), ("paper", "y"),
        ]  # fmt: skip
        assert not any(attr.is_set("index") for attr in attrs)
        for attr in attrs:
            attr.index, attr.attr_name = 1, "changed"
    assert "('paper', 'x'): (50, 5) torch.float32" in repr(store)


def test_size_needs_no_index_and_is_none_of_what_is_absent(store):
    store["paper", "x", None] = features()
    assert store.get_tensor_size("paper", "x") == (NODES, WIDTH)
    assert store.get_tensor_size("paper", "z") is None


def test_update_replaces_or_writes_rows(store):
    x = features()
    store["paper", "x", None] = x.clone()
    for put, index in ((store.update_tensor, torch.tensor([2, -1])), (store.put_tensor, np.array([7, 8]))):
        assert put(-features(2), "paper", "x", index)
        x[index] = -features(2)
        assert torch.equal(store["paper", "x", None], x)
    assert store.update_tensor(features(7, 2), "paper", "x", None)
    assert torch.equal(store["paper", "x", None], features(7, 2))


def test_remove(store):
    store["paper", "x", None], store["paper", "y", None] = features(), features()
    assert store.remove_tensor("paper", "x", None)
    assert not store.remove_tensor("paper", "x", None)
    del store["paper", "y"]
    assert store.get_all_tensor_attrs() == []


def test_only_tables_of_files_go_to_spawned_workers(store, tmp_path):
    np.save(tmp_path / "x.npy", features().numpy())
    store[None, "x", None] = tmp_path / "x.npy"
    copied = pickle.loads(pickle.dumps(store))
    assert torch.equal(copied[None, "x", np.array([1, 3])], features()[[1, 3]])
    store[None, "y", None] = torch.arange(NODES)
    with pytest.raises(memsys.UnsupportedError, match="not pickled"):
        pickle.dumps(store)


def test_errors(store):
    store["paper", "x", None] = features()
    with pytest.raises(KeyError, match=r"no attribute \('paper', 'z'\); there are: \('paper', 'x'\)"):
        store["paper", "z", None]
    with pytest.raises(memsys.RangeError):
        store["paper", "x", torch.tensor([0, NODES])]
    with pytest.raises(memsys.DtypeError):
        store["paper", "x", torch.tensor([0.0])]
    with pytest.raises(memsys.InputError, match="index None"):
        store.put_tensor(features(2), "paper", "z", torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="not fully specified"):
        store.get_tensor("paper", "x")
    with pytest.raises(memsys.SpillError):
        store["paper", "x", None] = "no such file.npy"
    assert torch.equal(store["paper", "x", None], features()), "a failed put leaves what was there"


def batches_of(loader, seed: int = 3) -> list:
    torch.manual_seed(seed)
    return list(loader)


@pytest.mark.parametrize(("workers", "per_worker"), [(0, None), (2, False), (2, True)])
def test_loader_of_a_homogeneous_graph(store, loader_of, workers, per_worker):
    from torch_geometric.data import Data

    x, y, (row, column) = features(), torch.arange(NODES) * 10, edges(NODES, NODES)
    store[None, "x", None], store[None, "y", None] = x, y
    graph = Data()
    graph.put_edge_index((row, column), layout="coo", size=(NODES, NODES))
    loader = loader_of((store, graph), num_neighbors=[3, 2], input_nodes=torch.arange(NODES), shuffle=True,
                       num_workers=workers, filter_per_worker=per_worker)  # fmt: skip
    batches = batches_of(loader)
    assert len(batches) == 7 and sum(batch.batch_size for batch in batches) == NODES
    for batch in batches:
        assert batch.num_nodes == len(batch.n_id) > batch.batch_size
        assert torch.equal(batch.x, x[batch.n_id]) and torch.equal(batch.y, y[batch.n_id])

    if workers == 0:  # workers draw from generators of their own
        data = Data(x=x, y=y, edge_index=torch.stack([row, column]))
        plain = loader_of(data, num_neighbors=[3, 2], input_nodes=torch.arange(NODES), shuffle=True)
        for batch, expected in zip(batches, batches_of(plain), strict=True):
            assert torch.equal(batch.n_id, expected.n_id) and torch.equal(batch.edge_index, expected.edge_index)
            assert torch.equal(batch.x, expected.x) and torch.equal(batch.y, expected.y)


def test_loader_of_a_heterogeneous_graph(store, loader_of):
    from torch_geometric.data import HeteroData

    counts, graph = {"paper": NODES, "author": 20}, HeteroData()
    for source, relation, target in [("author", "writes", "paper"), ("paper", "cites", "paper"),
                                     ("paper", "by", "author")]:  # fmt: skip
        size = counts[source], counts[target]
        graph.put_edge_index(tuple(edges(*size)), edge_type=(source, relation, target), layout="coo", size=size)
    x = {"paper": features(), "author": -features(20, 3)}
    store["paper", "x", None], store["author", "x", None] = x["paper"], x["author"]
    store["paper", "train_mask", None] = mask = torch.arange(NODES) % 2 == 0
    loader = loader_of((store, graph), num_neighbors=[3, 2], input_nodes=("paper", mask), shuffle=True)
    batches = batches_of(loader)
    assert sum(batch["paper"].batch_size for batch in batches) == int(mask.sum())
    assert all(len(batch["author"].n_id) for batch in batches)
    for batch in batches:
        for group, rows in x.items():
            assert torch.equal(batch[group].x, rows[batch[group].n_id])
        assert torch.equal(batch["paper"].train_mask, mask[batch["paper"].n_id])
        assert batch["paper"].train_mask[: batch["paper"].batch_size].all()


def test_absence_names_the_remedy(monkeypatch):
    for name in ("torch_geometric", "torch_geometric.data"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "memsys.integrations.pyg", raising=False)
    with pytest.raises(memsys.UnsupportedError, match="pip install torch_geometric") as caught:
        importlib.import_module("memsys.integrations.pyg")
    assert isinstance(caught.value, ImportError)


def test_memsys_alone_imports_no_torch_geometric():
    code = "import sys, memsys, memsys.integrations; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
