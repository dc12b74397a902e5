"""The differentiable gather: right as torch's own dense gradient is, sparse, and the same bits in every run.

A gradient that is wrong for duplicates or negatives trains a worse model and says nothing, so each is held against
x[index]; so are the ways in which a table's rows change, scatter_add_ and update_rows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402

INDEX = torch.tensor([3, -1, 3, 0, 9, -10, 3])


def new_table(dtype=torch.float64, row_shape=(4,), rows=10):
    x = torch.randn(rows, *row_shape, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    return memsys.HostTable(x), x.clone().requires_grad_(dtype.is_floating_point or dtype.is_complex)


class Dense(torch.autograd.Function):
    """The identity, whose gradient is dense: gradcheck takes no sparse one for a dense leaf."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_dense()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("index", [INDEX, INDEX.int(), torch.arange(3), torch.tensor([5])])
def test_gradcheck(index, row_shape, dtype):
    x = torch.randn(10, *row_shape, dtype=dtype, requires_grad=True)

    def gathered(x):
        table = memsys.HostTable(x, adopt=True)
        table._parameter = Dense.apply(x)
        return memsys.gather(table, index) ** 2

    assert torch.autograd.gradcheck(gathered, (x,), check_batched_grad=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row_shape", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("index", [INDEX, INDEX.int(), INDEX.tolist(), INDEX.numpy(), torch.tensor([2, 5])])
def test_the_gradient_is_that_of_indexing(index, row_shape, dtype):
    table, x = new_table(dtype, row_shape)
    upstream = torch.randn(len(index), *row_shape).to(dtype)
    rows = memsys.gather(table, index)
    wanted = x[torch.as_tensor(index)]
    assert torch.equal(rows, wanted)
    rows.backward(upstream)
    wanted.backward(upstream)
    gradient = table.parameter.grad
    assert gradient.is_sparse and gradient.dtype is dtype and gradient.shape == x.shape
    torch.testing.assert_close(gradient.to_dense(), x.grad)
    where, values = table.grad_rows()
    assert where.tolist() == sorted({which % 10 for which in INDEX.tolist()} if len(index) > 2 else {2, 5})
    torch.testing.assert_close(values, x.grad[where])


def test_several_gathers_are_accumulated():
    table, x = new_table()
    for index in (INDEX, torch.tensor([1, 3]), torch.arange(0), torch.tensor([-1, 0]).int()):
        (memsys.gather(table, index) ** 3).sum().backward()
        (x[index] ** 3).sum().backward()
    loss = memsys.gather(table, INDEX).sum() * memsys.gather(table, [2, 2]).prod()  # two in one graph
    loss.backward()
    (x[INDEX].sum() * x[[2, 2]].prod()).backward()
    torch.testing.assert_close(table.parameter.grad.to_dense(), x.grad)
    where, values = table.grad_rows()
    assert where.tolist() == [0, 1, 2, 3, 9]
    torch.testing.assert_close(values, x.grad[where])


def test_a_row_partly_used_has_a_gradient_in_that_part():
    table, x = new_table()
    memsys.gather(table, INDEX)[1:4, ::2].sum().backward()
    x[INDEX][1:4, ::2].sum().backward()
    assert torch.equal(table.parameter.grad.to_dense(), x.grad)
    assert table.grad_rows()[0].tolist() == [0, 3, 9]  # all that were gathered, zeros included


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_twice(dtype):
    index = torch.randint(-50, 50, (20_000,))
    upstream = (torch.randn(20_000, 32) * 10.0 ** torch.randint(-6, 6, (20_000, 1))).to(dtype)
    found = []
    for _ in range(3):
        table = memsys.HostTable(torch.zeros(50, 32, dtype=dtype))
        memsys.gather(table, index).backward(upstream)
        found.append(table.grad_rows()[1])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_large_table_makes_a_gradient_of_the_rows_used():
    table = memsys.HostTable(torch.zeros(2_000_000, 64), adopt=True)
    index = torch.randint(2_000_000, (1000,))
    memsys.gather(table, index).sum().backward()
    gradient = table.parameter.grad
    assert gradient.is_sparse and gradient.shape == (2_000_000, 64)
    assert gradient._values().untyped_storage().nbytes() <= 1000 * 64 * 4
    assert gradient._values().shape == (len(index.unique()), 64)


def test_an_empty_index():
    table, _ = new_table()
    rows = memsys.gather(table, [])
    assert rows.shape == (0, 4)
    rows.sum().backward()
    assert table.grad_rows()[0].numel() == 0 and table.parameter.grad.to_dense().count_nonzero() == 0


def test_no_grad_gives_no_graph():
    table, x = new_table()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            rows = memsys.gather(table, INDEX)
        assert not rows.requires_grad and rows.grad_fn is None and torch.equal(rows, x[INDEX])
    assert not table.gather(INDEX).requires_grad


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_have_no_gradient(dtype):
    table = memsys.HostTable(torch.ones(10, 4, dtype=dtype))
    with pytest.raises(TypeError, match="no gradient"):
        memsys.gather(table, INDEX)
    with torch.no_grad():
        assert torch.equal(memsys.gather(table, INDEX), table.tensor[INDEX])


def test_bad_input_leaves_no_gradient():
    table, _ = new_table()
    for index, error in (([10], IndexError), ([0.5], TypeError), ([[1]], ValueError)):
        with pytest.raises(error):
            memsys.gather(table, index)
    assert table.grad_rows()[0].numel() == 0


def test_there_is_no_second_derivative_and_it_says_so():
    table, _ = new_table()
    (first,) = torch.autograd.grad((memsys.gather(table, INDEX) ** 2).sum(), table.parameter, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.to_dense().sum().backward()


def test_grad_rows_and_zero_grad():
    table, _ = new_table()
    for _ in range(2):
        index, rows = table.grad_rows()
        assert index.shape == (0,) and index.dtype is torch.int64 and rows.shape == (0, 4) and rows.dtype is table.dtype
        memsys.gather(table, INDEX).sum().backward()
        index, rows = table.grad_rows()
        assert index.tolist() == [0, 3, 9] and rows[:, 0].tolist() == [2, 3, 2]
        table.zero_grad()
        assert table.parameter.grad is None


def test_the_gradient_is_what_sparse_adam_takes():
    table, _ = new_table()
    before = table.tensor.clone()
    optimizer = torch.optim.SparseAdam([table.parameter], lr=0.1)
    memsys.gather(table, [1, 1]).sum().backward()
    optimizer.step()
    assert (table.tensor != before).any(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.bfloat16])
def test_update_rows_keeps_the_last_of_duplicates(dtype):
    table, x = new_table(dtype)
    rows = torch.arange(28).reshape(7, 4).to(dtype)
    table.update_rows(INDEX.int(), rows)
    wanted = x.detach().clone()
    for which, row in zip(INDEX.tolist(), rows, strict=True):
        wanted[which] = row
    assert torch.equal(table.tensor, wanted)
    table.update_rows([], rows[:0])
    assert torch.equal(table.tensor, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64, torch.int64, torch.int32])
@pytest.mark.parametrize("row_shape", [(), (4,), (2, 3), (0,)])
def test_scatter_add_is_index_add(row_shape, dtype):
    table, x = new_table(dtype, row_shape)
    rows = (torch.randn(7, *row_shape) * 9).to(dtype)
    assert table.scatter_add_(INDEX, rows) is table
    torch.testing.assert_close(table.tensor, x.detach().index_add(0, INDEX % 10, rows))


@pytest.mark.parametrize("change", ["update_rows", "scatter_add_"])
@pytest.mark.parametrize(
    ("index", "rows", "error"),
    [([0, 10], torch.ones(2, 4), IndexError), ([0, -11], torch.ones(2, 4), IndexError),
     ([0, 1], torch.ones(1, 4), ValueError), ([0], torch.ones(1, 5), ValueError), ([0], torch.ones(4), ValueError),
     ([0], torch.ones(1, 4, dtype=torch.float64), ValueError), ([0.5], torch.ones(1, 4), TypeError),
     ([[0]], torch.ones(1, 1, 4), ValueError), ([True], torch.ones(1, 4), TypeError)],
)  # fmt: skip
def test_a_bad_change_writes_nothing(change, index, rows, error):
    table, x = new_table(torch.float32)
    with pytest.raises(error) as raised:
        getattr(table, change)(index, rows)
    assert isinstance(raised.value, memsys.MemsysError)
    assert torch.equal(table.tensor, x)


def test_a_dense_gradient_is_told():
    table = memsys.HostTable(torch.ones(10, 4))
    table.parameter.sum().backward()
    with pytest.raises(memsys.InputError, match="dense one"):
        table.grad_rows()


def test_rows_that_are_no_tensor():
    table = memsys.HostTable(torch.ones(10, 2))
    with pytest.raises(memsys.DtypeError, match="as_tensor"):
        table.update_rows([0], [[1.0, 2.0]])
    assert (table.tensor == 1).all()


def test_an_array_changed_before_backward_leaves_the_gradient_right():
    table = memsys.HostTable(torch.ones(1000, 4))
    index = np.array([1, 2, 3])
    loss = memsys.gather(table, index).sum()
    index[:] = 7, 8, 5000
    loss.backward()
    assert table.grad_rows()[0].tolist() == [1, 2, 3]
