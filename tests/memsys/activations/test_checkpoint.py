"""memsys.checkpoint and checkpoint_contexts: torch's results to the last bit, and what they keep is really away."""

from __future__ import annotations

import functools
import gc
import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint as torch_checkpoint
from gradients import assert_same, gradients
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

import memsys
from memsys import _tensor
from memsys.activations import default

aten = torch.ops.aten
CPU = torch.device("cpu")
ROWS, WIDTH = 256, 256  # 256 KiB of float32: the least that moves


class Block(nn.Module):
    """Dropout, a product of two inputs, and a table passed by keyword in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *, scale: Tensor | None = None, tables: tuple = ()) -> Tensor:
        h = F.dropout(torch.tanh(self.up(x)), 0.3)
        for table in tables:
            h = h * table
        h = self.down(h)
        return x + (h if scale is None else h * scale)


@pytest.fixture
def blocks() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(3))


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def run(blocks: nn.ModuleList, call, **options) -> list:
    """Loss, gradients and the random numbers that follow, of blocks called by `call`."""
    blocks.zero_grad()
    torch.manual_seed(7)
    scale, table = inputs(2).requires_grad_(), inputs(3)
    x = inputs() * 1
    for block in blocks:
        x = call(block, x, scale=scale * 1, tables=(table, table[:, :1] * 2), **options)
    loss = x.square().mean()
    loss.backward()
    return [loss, scale.grad, torch.rand(4), *gradients(blocks)]


def plainly(fn, *args, **kwargs):
    return fn(*args, **kwargs)


def moved_bytes() -> int:
    return default.session_for(CPU).stats().out_bytes


class Counting(TorchDispatchMode):
    """Counts the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def test_gradients_and_random_numbers_are_those_without_checkpoint(blocks):
    before = moved_bytes()
    assert_same(run(blocks, memsys.checkpoint), run(blocks, plainly))
    assert moved_bytes() > before
    assert _tensor.top_hooks() is None


@pytest.mark.parametrize("options", [{"preserve_rng_state": False}, {"determinism_check": "none"}, {"debug": True}])
def test_options_are_those_of_torch(blocks, options):
    torch_results = run(blocks, functools.partial(torch_checkpoint.checkpoint, use_reentrant=False), **options)
    assert_same(run(blocks, memsys.checkpoint, **options), torch_results)


def test_an_option_that_makes_no_sense_is_refused(blocks):
    with pytest.raises(ValueError, match="determinism_check"):
        memsys.checkpoint(blocks[0], inputs(), determinism_check="maybe")
    with pytest.raises(memsys.UnsupportedError, match="use_reentrant"):
        memsys.checkpoint(blocks[0], inputs(), use_reentrant=True)
    assert _tensor.top_hooks() is None


@pytest.mark.parametrize("place", ["positional", "keyword", "in a tuple", "in a dictionary"])
def test_inputs_leave_memory_wherever_they_are(place, blocks):
    weight = blocks[0].up.weight

    def fn(first=None, second=None):
        given = first if first is not None else second
        if isinstance(given, tuple):
            (given,) = given
        if isinstance(given, dict):
            given = given["x"]
        return (given @ weight).square()

    x = inputs() * 1
    before, gone = moved_bytes(), weakref.ref(x.untyped_storage())
    args, kwargs = {
        "positional": ((x,), {}),
        "keyword": ((), {"second": x}),
        "in a tuple": ((), {"second": (x,)}),
        "in a dictionary": (({"x": x},), {}),
    }[place]
    out = memsys.checkpoint(fn, *args, **kwargs)
    assert moved_bytes() - before == x.untyped_storage().nbytes()
    del x, args, kwargs
    default.session_for(CPU).drain()
    gc.collect()
    assert default.session_for(CPU).is_gone(gone()), "something still holds the input"
    out.mean().backward()
    found = weight.grad.clone()
    weight.grad = None
    fn(inputs()).mean().backward()
    assert torch.equal(found, weight.grad)


def test_parameters_as_inputs_stay_and_are_watched(blocks):
    weight, before = blocks[0].up.weight, moved_bytes()
    loss = memsys.checkpoint(lambda w: torch.tanh(w).square().mean(), weight)
    assert moved_bytes() == before
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(memsys.InPlaceError):
        loss.backward()


def test_the_caller_sees_what_the_function_does_to_its_containers():
    log, x = [], inputs().requires_grad_()

    def fn(x, seen):
        seen.append(1)
        return torch.tanh(x * 2) * x

    memsys.checkpoint(fn, x, log).sum().backward()
    assert log == [1], "the recomputation has a list of its own"


def test_retained_graph(blocks):
    weight = blocks[0].up.weight
    loss = memsys.checkpoint(blocks[0], inputs() * 1).square().mean()
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)


def test_a_changed_input_raises(blocks):
    x = inputs() * 1
    loss = memsys.checkpoint(blocks[0], x).square().mean()
    x.add_(1)
    with pytest.raises(memsys.InPlaceError):
        loss.backward()


def test_no_grad_moves_nothing(blocks):
    before = moved_bytes()
    with torch.no_grad():
        memsys.checkpoint(blocks[0].eval(), inputs())
    assert moved_bytes() == before


def test_checkpoint_inside_checkpoint(blocks):
    def inner(block, x, **kwargs):
        return memsys.checkpoint(lambda x, **kwargs: memsys.checkpoint(block, x, **kwargs) * 2, x, **kwargs)

    def inner_plain(block, x, **kwargs):
        return block(x, **kwargs) * 2

    assert_same(run(blocks, inner), run(blocks, inner_plain))


def test_exception_in_the_function(blocks):
    def fail(x):
        raise KeyError("no")

    with pytest.raises(KeyError):
        memsys.checkpoint(fail, inputs())
    assert _tensor.top_hooks() is None
    assert_same(run(blocks, memsys.checkpoint), run(blocks, plainly))


class Stack(nn.Module):
    """Blocks, each in a checkpoint of whatever kind `call` is."""

    def __init__(self, blocks: nn.ModuleList, call) -> None:
        super().__init__()
        self.blocks, self.call = blocks, call

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.call(block, x, scale=x * 2)
        return x


def offloading(operations):
    """A policy that moves the results of these."""

    def policy(context, operation, *args, **kwargs):
        assert context.op_output is not None and not context.is_recompute
        return CheckpointPolicy.MUST_CPU_OFFLOAD if operation in operations else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def always(policy):
    """A policy that says the same of every result that dropout does not change in place."""

    def choose(context, operation, *args, **kwargs):
        is_noise = operation in {aten.empty_like.default, aten.bernoulli_.float, aten.div_.Scalar}
        return CheckpointPolicy.MUST_RECOMPUTE if is_noise else policy

    return choose


def contexts(policy):
    return functools.partial(memsys.checkpoint_contexts, policy)


@pytest.mark.parametrize("selective", [False, True])
def test_inside_an_offloaded_model(selective, blocks, tmp_path):
    options = {"context_fn": contexts([aten.addmm.default])} if selective else {}
    x, before = inputs(), moved_bytes()
    torch.manual_seed(3)
    Stack(blocks, plainly)(x).square().mean().backward()
    wanted = gradients(blocks)
    blocks.zero_grad()
    model = memsys.offload(Stack(blocks, functools.partial(memsys.checkpoint, **options)), policy="all",
                           spill_dir=tmp_path)  # fmt: skip
    torch.manual_seed(3)
    model(x).square().mean().backward()
    assert_same(gradients(blocks), wanted)
    # Two inputs a block (the second block's input is also what the first saved), two products each if selective.
    assert memsys.stats(model).packed_count >= (12 if selective else 6)
    assert moved_bytes() == before, "the model's own session answers inside it"


@pytest.mark.parametrize("policy", list(CheckpointPolicy))
@pytest.mark.parametrize("outer", [memsys.checkpoint, functools.partial(torch_checkpoint.checkpoint,
                                                                         use_reentrant=False)])  # fmt: skip
def test_each_policy_gives_the_same_gradients(policy, outer, blocks):
    found = run(blocks, functools.partial(outer, context_fn=contexts(always(policy))))
    assert_same(found, run(blocks, plainly))


@pytest.mark.parametrize(("policy", "recomputed"), [(CheckpointPolicy.MUST_CPU_OFFLOAD, 0),
                                                   (CheckpointPolicy.PREFER_CPU_OFFLOAD, 0),
                                                   (CheckpointPolicy.MUST_SAVE, 0), (True, 0),
                                                   (CheckpointPolicy.MUST_RECOMPUTE, 1), (False, 1)])  # fmt: skip
def test_what_is_offloaded_is_not_computed_again(policy, recomputed):
    def choose(context, operation, *args, **kwargs):
        return policy if operation is aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    weight, x = inputs(4).requires_grad_(), inputs() * 1
    before = moved_bytes()
    loss = torch_checkpoint.checkpoint(lambda x: torch.tanh(torch.sigmoid(x) @ weight).square().sum(), x,
                                       use_reentrant=False, context_fn=contexts(choose))  # fmt: skip
    is_away = isinstance(policy, CheckpointPolicy) and "OFFLOAD" in policy.name
    assert moved_bytes() - before == (ROWS * WIDTH * 4 if is_away else 0)
    with Counting() as counting:
        loss.backward()
    # Backward itself multiplies once, for the weight's gradient.
    assert counting.calls[aten.mm.default] == 1 + recomputed
    assert counting.calls[aten.sigmoid.default] == 1
    torch.tanh(torch.sigmoid(x) @ weight).square().sum().backward()
    assert torch.equal(weight.grad / 2, weight.grad - weight.grad / 2)


def test_an_offloaded_result_is_really_away():
    weight = inputs(4).requires_grad_()
    storages = []

    def fn(x):
        product = x @ weight
        storages.append(weakref.ref(product.untyped_storage()))
        return torch.tanh(product).sum()

    loss = memsys.checkpoint(fn, inputs() * 1, context_fn=contexts([aten.mm.default]))
    default.session_for(CPU).drain()
    gc.collect()
    assert default.session_for(CPU).is_gone(storages[0]()), "something still holds the result"
    loss.backward()
    assert len(storages) == 2


def test_operations_with_several_results_and_views():
    operations = {aten.native_layer_norm.default, aten.split.Tensor, aten.t.default, aten.topk.default}
    weight = inputs(4).requires_grad_()

    def fn(x):
        left, right = F.layer_norm(x @ weight.t(), (WIDTH,)).split(WIDTH // 2, dim=1)
        values, _ = (left * right).topk(5, dim=1)
        return torch.tanh(values).sum() + (left * torch.tanh(right)).sum()

    fn(inputs()).backward()
    wanted, weight.grad = weight.grad, None
    memsys.checkpoint(fn, inputs(), context_fn=contexts(offloading(operations))).backward()
    assert torch.equal(weight.grad, wanted)


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_CPU_OFFLOAD])
def test_a_result_changed_in_place_raises(policy):
    weight = inputs(4).requires_grad_()

    def choose(context, operation, *args, **kwargs):
        return policy if operation is aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

    def fn(x):
        return torch.tanh((x @ weight).mul_(2)).sum()

    with pytest.raises(memsys.InPlaceError):
        memsys.checkpoint(fn, inputs(), context_fn=contexts(choose)).backward()


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_CPU_OFFLOAD])
def test_retained_graph_with_contexts(policy, blocks):
    options = {"context_fn": contexts(always(policy))}
    loss = memsys.checkpoint(blocks[0], inputs() * 1, **options).square().mean()
    first = torch.autograd.grad(loss, list(blocks[0].parameters()), retain_graph=True)
    assert_same(torch.autograd.grad(loss, list(blocks[0].parameters())), first)


def test_a_function_that_does_something_else_in_recomputation_raises():
    times = []

    def fn(x):
        times.append(1)
        for _ in times:
            x = torch.sigmoid(x)
        return torch.tanh(x).sum()

    options = {"context_fn": contexts([aten.sigmoid.default]), "early_stop": False}
    loss = memsys.checkpoint(fn, inputs().requires_grad_(), **options)
    with pytest.raises(memsys.MemsysError, match="must do the same both times"):
        loss.backward()


def test_policies_that_make_no_sense():
    with pytest.raises(memsys.InputError, match="function or a list"):
        memsys.checkpoint_contexts(3)
    with pytest.raises(memsys.InputError, match="name the overload"):
        memsys.checkpoint_contexts([aten.mm])
    with pytest.raises(memsys.InputError, match="CheckpointPolicy"):
        memsys.checkpoint(torch.tanh, inputs().requires_grad_(), context_fn=contexts(lambda *args, **kwargs: "save"))
    assert _tensor.top_hooks() is None
