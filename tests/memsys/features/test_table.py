"""HostTable: what it is made of, what it gives, and what it says of bad input."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from built import needs_memsys

needs_memsys()

from safetensors.torch import save_file  # noqa: E402

import memsys  # noqa: E402
from memsys import _tensor  # noqa: E402

BIG = 400_000  # bytes: more than what the pool begins with


def table_and_rows(rows=500, width=24, dtype=torch.float32):
    x = torch.arange(rows * width).reshape(rows, width).to(dtype)
    return memsys.HostTable(x), x


def test_a_table_is_a_copy_at_an_aligned_base():
    table, x = table_and_rows()
    assert torch.equal(table.tensor, x)
    assert _tensor.pointer_of(table.tensor) % 128 == 0
    x.zero_()
    assert table.tensor.any()


def test_adopted_memory_is_not_copied():
    x = torch.randn(100, 40)[:, :24]  # rows of a wider tensor
    table = memsys.HostTable(x, adopt=True)
    assert _tensor.pointer_of(table.tensor) == _tensor.pointer_of(x)
    index = torch.tensor([3, -1, 3])
    assert torch.equal(table.gather(index), x[index])
    with pytest.raises(memsys.InputError, match="leave adopt out"):
        memsys.HostTable(torch.randn(24, 100).t(), adopt=True)


def test_adopted_memory_that_moved_is_not_read():
    x = torch.randn(100, 24)
    table = memsys.HostTable(x, adopt=True)
    x.untyped_storage().resize_(0)
    with pytest.raises(memsys.InputError, match="make a new table"):
        table.gather(torch.tensor([1]))


@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, lambda x: np.asarray(x).astype(">f4")])
def test_an_array(make):
    _, x = table_and_rows()
    assert torch.equal(memsys.HostTable(make(x.numpy())).tensor, x)


def test_a_read_only_array_is_copied_without_a_warning(recwarn):
    array = np.ones((4, 4), np.float32)
    array.flags.writeable = False
    assert memsys.HostTable(array).tensor.sum() == 16
    assert not recwarn.list


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file(order, tmp_path):
    array = np.asarray(np.random.default_rng(0).normal(size=(300, 5, 3)), order=order)
    np.save(tmp_path / "x.npy", array)
    table = memsys.HostTable(tmp_path / "x.npy")
    assert table.shape == (300, 5, 3) and np.array_equal(table.tensor.numpy(), array)


def test_a_safetensors_file(tmp_path):
    _, x = table_and_rows()
    save_file({"x": x, "y": x.bfloat16()}, tmp_path / "x.safetensors")
    assert torch.equal(memsys.HostTable(tmp_path / "x.safetensors", name="y").tensor, x.bfloat16())
    for name in (None, "z"):
        with pytest.raises(memsys.InputError, match="x, y"):
            memsys.HostTable(tmp_path / "x.safetensors", name=name)


def test_a_file_larger_than_a_piece_and_one_cut_short(tmp_path):
    x = torch.arange(5 << 20, dtype=torch.int32).reshape(-1, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    assert torch.equal(memsys.HostTable(tmp_path / "x.npy").tensor, x)
    os.truncate(tmp_path / "x.npy", 1 << 20)
    with pytest.raises(memsys.CorruptionError):
        memsys.HostTable(tmp_path / "x.npy")
    with pytest.raises(OSError, match="nowhere"):
        memsys.HostTable(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    ("source", "error"),
    [(3, TypeError), ([[1.0]], TypeError), (torch.tensor(1.0), ValueError), (np.array(["a"]), TypeError),
     (torch.eye(3).to_sparse(), ValueError), (torch.empty(3, 3, device="meta"), ValueError)],
)  # fmt: skip
def test_a_source_that_is_none(source, error):
    with pytest.raises(error) as raised:
        memsys.HostTable(source)
    assert isinstance(raised.value, memsys.MemsysError)


def test_indexing_is_that_of_a_tensor():
    table, x = table_and_rows()
    mask = torch.arange(len(x)) % 3 == 0
    many = torch.randint(-500, 500, (4, 3, 2))
    for index in (
        7,
        -1,
        slice(2, 9, 3),
        mask,
        mask.numpy(),
        many,
        many.int(),
        many.numpy(),
        [1, -2],
        [],
        torch.tensor(3),
    ):
        assert torch.equal(table[index], x[index]), index
    table[5].zero_()  # a view, as of a tensor
    assert table.tensor[5].sum() == 0
    for index in (500, -501):
        with pytest.raises(IndexError):
            table[index]


@pytest.mark.parametrize("index", [torch.tensor([0.5]), torch.tensor([1], dtype=torch.uint8), "a", None, ..., (1, 2)])
def test_an_index_of_a_wrong_type(index):
    with pytest.raises(TypeError) as raised:
        table_and_rows()[0][index]
    assert isinstance(raised.value, memsys.MemsysError)


@pytest.mark.parametrize("index", [torch.tensor([True]), [0.5], torch.tensor([1], dtype=torch.int16)])
def test_gather_takes_integers_only(index):
    with pytest.raises(TypeError):
        table_and_rows()[0].gather(index)


def test_a_mask_of_a_wrong_length():
    with pytest.raises(IndexError, match=r"\[500\]"):
        table_and_rows()[0][torch.ones(499, dtype=torch.bool)]


@pytest.mark.parametrize("count", [3, 300_000])
@pytest.mark.parametrize("bad", [500, -501, 2**31 - 1, -(2**31), 2**62])
def test_out_of_range_says_where_and_writes_nothing(count, bad):
    table, _ = table_and_rows(width=1)
    index = torch.zeros(count, dtype=torch.int64 if abs(bad) > 2**31 else torch.int32)
    index[count - 2 :] = bad
    out = torch.full((count, 1), -1.0)
    with pytest.raises(IndexError, match=f"index {bad} at position {count - 2} ") as raised:
        table.gather(index, out=out)
    assert isinstance(raised.value, memsys.RangeError)
    assert (out == -1).all()


def test_out_is_written_and_returned():
    table, x = table_and_rows()
    index = torch.randint(500, (1000,))
    out = torch.empty(1000, 24)
    assert table.gather(index, out=out) is out
    assert torch.equal(out, x[index])


def test_a_graph_that_saved_an_out_notices_that_it_was_written_again():
    table, _ = table_and_rows()
    out, weight = torch.empty(3, 24), torch.ones(24, 2, requires_grad=True)
    for work in (lambda: table.gather(torch.tensor([3, 4, 5]), out=out),
                 lambda: table.gather_async(torch.tensor([3, 4, 5]), out=out).wait()):  # fmt: skip
        result = (table.gather(torch.tensor([0, 1, 2]), out=out) @ weight).sum()
        work()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


@pytest.mark.parametrize(
    "out",
    [torch.empty(2, 24), torch.empty(3, 23), torch.empty(3, 24, dtype=torch.float64), torch.empty(24, 3).t(),
     torch.empty(3, 24, requires_grad=True), torch.empty(3, 24, device="meta")],
)  # fmt: skip
def test_an_out_that_does_not_fit(out):
    with pytest.raises(ValueError, match="out") as raised:
        table_and_rows()[0].gather(torch.tensor([1, 2, 3]), out=out)
    assert isinstance(raised.value, memsys.InputError)


def test_an_out_inside_the_table():
    table, _ = table_and_rows()
    with pytest.raises(ValueError, match="table itself"):
        table.gather(torch.tensor([1, 2]), out=table.tensor[:2])
    with pytest.raises(TypeError):
        table.gather(torch.tensor([1]), out=[0.0] * 24)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (5,), (3, 2, 2), (1, 1)])
def test_empty_and_odd_shapes(shape):
    x = torch.randn(shape)
    table = memsys.HostTable(x)
    for count in (0, 6):
        index = torch.randint(max(1, shape[0]), (count,))
        if shape[0] == 0 and count:
            with pytest.raises(IndexError):
                table.gather(index)
        else:
            assert torch.equal(table.gather(index), x[index])


def test_more_than_two_to_the_31_elements():
    x = torch.zeros((1 << 31) + 4096, dtype=torch.uint8).view(-1, 64)
    x[-1] = 7
    table = memsys.HostTable(x, adopt=True)
    assert torch.equal(table.gather(torch.tensor([-1, 0, len(x) - 1])), x[[-1, 0, -1]])


def test_a_pooled_output_is_used_again_only_when_nobody_holds_it():
    table, x = table_and_rows(width=100)
    index = torch.randint(500, (BIG // 100,))
    first = table.gather(index)
    where, kept = _tensor.pointer_of(first), first[3:4]
    wanted = kept.clone()
    del first
    second = table.gather(index.flip(0))  # a view holds the first
    assert _tensor.pointer_of(second) != where and torch.equal(kept, wanted)
    del second, kept
    addresses = {_tensor.pointer_of(table.gather(index)) for _ in range(5)}
    assert len(addresses) == 1
    rows = table.gather(index)
    assert table.trim() >= 0
    del table
    assert torch.equal(rows, x[index])  # outlives the table


def test_the_pool_does_not_grow_without_bound():
    table, _ = table_and_rows(width=100)
    for count in range(1000, 6000, 50):
        table.gather(torch.zeros(count, dtype=torch.int64))
    assert table._core.pool_bytes <= 64 << 20
    table.trim()
    assert table._core.pool_bytes == 0


def test_many_threads_at_once():
    table, x = table_and_rows(rows=20_000, width=64)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            index = torch.randint(-20_000, 20_000, (5000,), generator=generator)
            if not torch.equal(table.gather(index), x[index]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def gather_in_child(table, index, connection):
    torch.set_num_threads(1)  # as in a DataLoader's worker: OpenMP does not survive fork()
    try:
        connection.send(table.gather(index).double().sum().item())
    except BaseException as error:
        connection.send(repr(error))


def test_a_forked_child_reads_the_table():
    table, x = table_and_rows(rows=5000, width=64)
    index = torch.randint(5000, (5000,))
    held = table.gather(index)  # from the pool, and read by the child too
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    for index_or_rows in (index, torch.arange(3)):
        child = context.Process(target=gather_in_child, args=(table, index_or_rows, theirs))
        child.start()
        assert ours.poll(60)
        assert ours.recv() == x[index_or_rows].double().sum().item()  # exact: small integers
        child.join(60)
    assert torch.equal(held, x[index])


def test_a_spawned_child_gets_a_path_or_a_clear_error(tmp_path):
    table, x = table_and_rows()
    with pytest.raises(memsys.UnsupportedError, match="npy"):
        pickle.dumps(table)
    np.save(tmp_path / "x.npy", x.numpy())
    again = pickle.loads(pickle.dumps(memsys.HostTable(tmp_path / "x.npy")))
    assert torch.equal(again.tensor, x)


def test_repr_says_what_it_is():
    assert repr(table_and_rows()[0]) == "HostTable([500, 24], torch.float32, 0.0 MiB)"


def test_an_out_over_its_own_index_is_refused():
    table = memsys.HostTable(torch.full((1000,), 10**15))
    both = torch.zeros(1001, dtype=torch.int64)
    with pytest.raises(ValueError, match="index"):
        table.gather(both[:-1], out=both[1:])


def test_a_conjugated_out_and_a_sparse_index_are_refused():
    table = memsys.HostTable(torch.zeros(4, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="conj"):
        table.gather(torch.tensor([1]), out=torch.empty(1, 2, dtype=torch.complex64).conj())
    with pytest.raises(TypeError, match="plain"):
        table.gather(torch.tensor([1, 0]).to_sparse())


def test_memory_that_is_not_the_tables_any_more_is_not_read():
    table = memsys.HostTable(torch.zeros(100, 24))
    table.parameter.data = torch.ones(100, 24)
    with pytest.raises(memsys.InputError, match="replaced"):
        table.gather(torch.tensor([1]))
    adopted = torch.randn(100_000, 24)
    table = memsys.HostTable(adopted, adopt=True)
    address = _tensor.pointer_of(adopted)
    adopted.untyped_storage().resize_(4 << 20)  # perhaps at the same address
    with pytest.raises(memsys.InputError, match="freed"):
        table.gather(torch.tensor([99_999]))
    assert address


@pytest.mark.parametrize("array", [np.ones((4, 3))[::-1], np.ones((4, 3)).astype(">f8")], ids=["reversed", "foreign"])
def test_what_would_be_copied_is_not_adopted(array):
    assert memsys.HostTable(array).tensor.sum() == 12
    with pytest.raises(memsys.InputError, match="leave adopt out"):
        memsys.HostTable(array, adopt=True)


def test_a_table_that_was_trained_is_not_pickled_as_its_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    table = memsys.HostTable(tmp_path / "x.npy")
    table.update_rows([0], torch.ones(1, 3))
    with pytest.raises(memsys.UnsupportedError, match="changed"):
        pickle.dumps(table)
