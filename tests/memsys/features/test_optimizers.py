"""RowSGD, RowAdagrad and RowAdam: torch.optim's of these names, on the rows that a step used and on no others.

Each is held against torch's own over an embedding with a sparse gradient, for enough steps that a wrong moment or bias
correction has grown visible.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402

ROWS, WIDTH, STEPS = 60, 6, 50
KINDS = {
    "sgd": (lambda tables: memsys.RowSGD(tables, lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    "adagrad": (lambda tables: memsys.RowAdagrad(tables, lr=0.05), lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "adam": (lambda tables: memsys.RowAdam(tables, lr=0.02), lambda p: torch.optim.SparseAdam(p, lr=0.02)),
    "adam with betas": (
        lambda tables: memsys.RowAdam(tables, lr=0.02, betas=(0.5, 0.9), eps=1e-4),
        lambda p: torch.optim.SparseAdam(p, lr=0.02, betas=(0.5, 0.9), eps=1e-4),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def batches(steps=STEPS, rows=ROWS, seed=0):
    """Indices with duplicates, of which each step has others; the last fifth of the rows is never used."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 40, (steps,), generator=generator).tolist()
    return [torch.randint(rows * 4 // 5, (count,), generator=generator) for count in counts]


def loss_of(rows, step):
    return (rows * torch.linspace(-1, 1 + step % 3, rows.shape[1], dtype=rows.dtype)).sin().square().sum()


def step_rows(table, optimizer, index, step):
    optimizer.zero_grad()
    loss_of(memsys.gather(table, index), step).backward()
    optimizer.step()


def start(dtype=torch.float32):
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad draws it
@each_kind
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-6), (torch.float64, 1e-12, 1e-12)])
def test_fifty_steps_are_those_of_torch(kind, dtype, rtol, atol):
    ours, theirs = KINDS[kind]
    table = memsys.HostTable(start(dtype))
    embedding = torch.nn.Embedding(ROWS, WIDTH, sparse=True, dtype=dtype)
    embedding.weight.data.copy_(table.tensor)
    optimizer, reference = ours(table), theirs(embedding.parameters())
    for step, index in enumerate(batches()):
        step_rows(table, optimizer, index, step)
        reference.zero_grad()
        loss_of(embedding(index), step).backward()
        reference.step()
        torch.testing.assert_close(table.tensor, embedding.weight.data, rtol=rtol, atol=atol)
    assert (table.tensor - start(dtype)).abs().max() > 0.1  # it moved


@each_kind
def test_rows_never_used_stay_bit_for_bit(kind):
    x = start()
    unused = slice(ROWS * 4 // 5, None)
    x[unused] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 1.0, -1.0])
    table = memsys.HostTable(x)
    optimizer = KINDS[kind][0](table)
    for step, index in enumerate(batches()):
        used = torch.zeros(ROWS, dtype=torch.bool)
        used[index] = True
        before = table.tensor.clone()
        step_rows(table, optimizer, index, step)
        assert torch.equal(table.tensor[~used].view(torch.int32), before[~used].view(torch.int32))
    assert torch.equal(table.tensor[unused].view(torch.int32), x[unused].view(torch.int32))
    for values in optimizer.state[0].values():
        assert values[unused].count_nonzero() == 0


@each_kind
def test_the_same_bits_twice(kind):
    found = []
    for _ in range(2):
        table = memsys.HostTable(start())
        optimizer = KINDS[kind][0](table)
        for step, index in enumerate(batches()):
            step_rows(table, optimizer, index, step)
        found.append(table.tensor)
    assert torch.equal(*found)


@each_kind
def test_a_saved_state_continues_identically(kind):
    table = memsys.HostTable(start())
    optimizer = KINDS[kind][0](table)
    given = batches()
    for step, index in enumerate(given[:25]):
        step_rows(table, optimizer, index, step)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    again = memsys.HostTable(table.tensor)
    resumed = KINDS[kind][0](again)
    resumed.load_state_dict(saved)
    for step, index in enumerate(given[25:]):
        step_rows(table, optimizer, index, step)
        step_rows(again, resumed, index, step)
        assert torch.equal(table.tensor, again.tensor)


def test_a_loaded_state_is_a_copy():
    table = memsys.HostTable(start())
    optimizer = memsys.RowAdam(table)
    step_rows(table, optimizer, torch.tensor([1]), 0)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    step_rows(table, optimizer, torch.tensor([1]), 1)
    assert saved["step_counts"] == [1] and not torch.equal(saved["state"][0]["exp_avg"], optimizer.state[0]["exp_avg"])


@pytest.mark.parametrize("wrong", ["tables", "shape", "kind", "no state"])
def test_a_wrong_state_is_refused_and_changes_nothing(wrong):
    table = memsys.HostTable(start())
    optimizer = memsys.RowAdam(table, lr=0.25)
    step_rows(table, optimizer, torch.tensor([1, 2]), 0)
    before = copy.deepcopy(optimizer.state_dict())
    others = {
        "tables": lambda: [memsys.HostTable(start()), memsys.HostTable(start())],
        "shape": lambda: [memsys.HostTable(start()[:, :5])],
    }.get(wrong, lambda: [memsys.HostTable(start())])()
    make = {"kind": memsys.RowAdagrad, "no state": memsys.RowSGD}.get(wrong, memsys.RowAdam)
    other = make(others, lr=0.5)
    step_rows(others[0], other, torch.tensor([1]), 0)
    with pytest.raises(memsys.InputError, match="state_dict"):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert after["hyperparameters"] == before["hyperparameters"] and after["step_counts"] == before["step_counts"]
    for name, values in before["state"][0].items():
        assert torch.equal(after["state"][0][name], values)


@pytest.mark.parametrize("make", [memsys.RowSGD, memsys.RowAdagrad, memsys.RowAdam])
@pytest.mark.parametrize("lr", [-1.0, float("nan")])
def test_a_bad_lr(make, lr):
    with pytest.raises(ValueError, match="lr") as raised:
        make(memsys.HostTable(start()), lr=lr)
    assert isinstance(raised.value, memsys.InputError)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_bad_betas(betas):
    with pytest.raises(memsys.InputError, match="betas"):
        memsys.RowAdam(memsys.HostTable(start()), betas=betas)


@each_kind
def test_a_step_without_a_gradient_changes_nothing(kind):
    table = memsys.HostTable(start())
    optimizer = KINDS[kind][0](table)
    optimizer.step()
    memsys.gather(table, []).sum().backward()
    optimizer.step()
    assert torch.equal(table.tensor, start()) and optimizer.step_counts == [0]


def test_each_of_several_tables_has_its_own_steps():
    first, second, alone = (memsys.HostTable(start()) for _ in range(3))
    both, one = memsys.RowAdam([first, second], lr=0.1), memsys.RowAdam(alone, lr=0.1)
    for step, index in enumerate(batches(10)):
        step_rows(first, both, index, step)
        if step % 2:  # the second table takes part in every other step only
            both.zero_grad()
            loss_of(memsys.gather(second, index), step).backward()
            both.step()
            step_rows(alone, one, index, step)
    assert both.step_counts == [10, 5]
    assert torch.equal(second.tensor, alone.tensor) and not torch.equal(first.tensor, second.tensor)


def test_an_adopted_table_is_updated_where_it_lies():
    x = torch.randn(10, 8)[:, :6]
    before = x.clone()
    table = memsys.HostTable(x, adopt=True)
    step_rows(table, memsys.RowSGD(table, lr=0.1), torch.tensor([-1, 2]), 0)
    assert (x != before).any(1).nonzero().flatten().tolist() == [2, 9]
