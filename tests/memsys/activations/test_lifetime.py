"""Autograd graphs in every shape a training script gives them: the handles own the bytes, so all give right gradients.

Each test runs one scenario on twins, with everything moved and without memsys, compares every gradient bit for bit,
and asks that no transfer, spill space or kept byte outlives the last graph.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from built import needs_memsys
from torch import nn
from torch.utils.checkpoint import checkpoint

needs_memsys()

from gradients import (  # noqa: E402
    DROPPED,
    TIERS,
    assert_idle,
    assert_same,
    compare,
    gradients,
    offloaded,
    small_input,
    small_model,
    step,
)

import memsys  # noqa: E402
from memsys import (  # noqa: E402
    _C,
    _tensor,
    runtimes,
)
from memsys.activations.offload import session_of  # noqa: E402
from memsys.activations.recipes import RecipeBook  # noqa: E402


@pytest.fixture(params=[*TIERS, "dropped"])
def policy(request, monkeypatch):
    if request.param in TIERS:
        return TIERS[request.param]
    monkeypatch.setattr(RecipeBook, "is_proven", lambda book, key: True)  # from the first forward on
    return DROPPED


def loss_of(model, seed=1):
    return model(small_input(seed)).square().mean()


def test_two_forwards_then_one_backward_of_the_sum(policy, tmp_path):
    def scenario(model):
        first, second = loss_of(model, 1), loss_of(model, 2)
        (first + second).backward()
        return [first, second, *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_two_forwards_then_backward_of_the_first_alone(policy, tmp_path):
    def scenario(model):
        first, second = loss_of(model, 1), loss_of(model, 2)
        first.backward()
        return [first, second.detach(), *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_forward_without_backward_then_a_step(policy, tmp_path):
    def scenario(model):
        dropped = loss_of(model, 2).detach()
        return [dropped, *step(model, small_input())]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_retain_graph_twice(policy, tmp_path):
    def scenario(model):
        loss = loss_of(model)
        loss.backward(retain_graph=True)
        once = gradients(model)
        loss.backward(retain_graph=True)
        twice = gradients(model)
        loss.backward()
        return [loss, *once, *twice, *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_double_backward(policy, tmp_path):
    def scenario(model):
        x = small_input(requires_grad=True)
        loss = model(x).square().mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        penalty = slope.square().sum()
        (loss + penalty).backward()
        return [loss, penalty, x.grad, *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_partial_backward(policy, tmp_path):
    def scenario(model):
        kept = []
        hook = model[0].register_forward_hook(lambda module, args, out: kept.append(out))
        loss = model(small_input(requires_grad=True)).square().mean()
        hook.remove()
        found = torch.autograd.grad(loss, [*kept, model[1].up.weight], retain_graph=True)
        return [*found, *torch.autograd.grad(loss, [model[2].norm.bias])]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_backward_of_a_slice_of_the_outputs_then_of_the_rest(policy, tmp_path):
    def scenario(model):
        out = model(small_input())
        out[:4].square().sum().backward(retain_graph=True)
        first = gradients(model)
        out[4:].square().sum().backward()
        return [*first, *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_nested_contexts(policy, tmp_path):
    wanted = step(small_model(), small_input())
    model = offloaded(small_model(), tmp_path, policy)
    options = {"min_bytes": 1, "spill_dir": str(tmp_path)}
    with memsys.offload_activations(policy="all", **options):
        with memsys.offload_activations(policy=policy, **options), torch.autograd.graph.save_on_cpu():
            loss = loss_of(model)
        other = loss_of(model, 2)
    loss.backward()
    assert_same([loss, *gradients(model)], wanted)
    other.backward()
    del loss, other
    assert _tensor.top_hooks() is None
    assert_idle(model)


@pytest.mark.parametrize("begins", ["outside", "inside"])
def test_a_generator_closed_inside_a_context(begins, tmp_path):
    wanted = step(small_model(), small_input())
    options = {"policy": "all", "min_bytes": 1, "spill_dir": str(tmp_path)}

    def batches():
        with memsys.offload_activations(**options):
            while True:
                yield small_input()

    model, generator = small_model(), batches()
    early = next(generator) if begins == "outside" else None
    with memsys.offload_activations(**options):
        x = next(generator) if early is None else early
        loss = model(x).square().mean()
        generator.close()
        again = model(x).square().mean()
    loss.backward()
    assert_same([loss, *gradients(model)], wanted)
    model.zero_grad()
    again.backward()
    assert_same([again, *gradients(model)], wanted)
    assert_same(step(model, small_input()), wanted)
    assert _tensor.top_hooks() is None


def test_backward_in_another_thread(policy, tmp_path):
    def scenario(model):
        loss = loss_of(model)
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return [loss, *gradients(model)]

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_eight_threads_share_a_model(policy, tmp_path):
    def scenario(model):
        def work(seed):
            loss = loss_of(model, seed)
            return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(work, range(32)))
        return [tensor for row in rows for tensor in row]

    assert compare(scenario, tmp_path, policy).packed_count > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_inside(use_reentrant, policy, tmp_path):
    def scenario(model):
        x = small_input(requires_grad=True)
        through = checkpoint(model, x, use_reentrant=use_reentrant).square().mean()
        plain_forward, inner = model[1].forward, model[1]
        inner.forward = lambda hidden: checkpoint(plain_forward, hidden, use_reentrant=use_reentrant)
        loss = model(x).square().mean()
        del inner.forward
        (loss + through).backward()
        return [loss, through, x.grad, *gradients(model)]

    compare(scenario, tmp_path, policy)


class Break(Exception):
    """What a test throws into a step."""


@pytest.mark.parametrize("kind", [Break, KeyboardInterrupt])
def test_exception_in_forward(kind, policy, tmp_path):
    def scenario(model):
        def fail(module, args):
            raise kind

        hook = model[2].register_forward_pre_hook(fail)
        with pytest.raises(kind):
            model(small_input(2))
        hook.remove()
        assert _tensor.top_hooks() is None
        return step(model, small_input())

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_exception_in_pack(tmp_path):
    wanted = step(small_model(), small_input())
    calls = []

    def policy(saved):
        calls.append(saved)
        if len(calls) == 4:
            raise Break
        return TIERS["file"](saved)

    model = offloaded(small_model(), tmp_path, policy)
    with pytest.raises(Break):
        model(small_input())
    assert _tensor.top_hooks() is None
    assert_same(step(model, small_input()), wanted)
    assert_idle(model)


@pytest.fixture
def faulty():
    """A runtime of this process's CPU whose reads and writes can be made to fail."""
    runtime = _C.Runtime(_C.DeviceKind.host, faults=_C.FaultSeam.faulty)
    runtimes.override_runtime(runtime)
    yield runtime
    runtimes.override_runtime(None)


@pytest.mark.parametrize(("fault", "kind"), [("io_error", memsys.SpillError), ("corrupt", memsys.CorruptionError)])
def test_exception_in_unpack(fault, kind, faulty, tmp_path):
    wanted = step(small_model(), small_input())
    model = offloaded(small_model(), tmp_path, TIERS["file"], host_budget="1MiB")
    assert_same(step(model, small_input()), wanted)
    loss = loss_of(model)
    session_of(model).drain()
    faulty.arm_io(_C.IoFault.__members__[fault], 0, _C.FaultSpan.persistent)
    with pytest.raises(kind):
        loss.backward()
    faulty.arm_io(_C.IoFault.none, 0, _C.FaultSpan.once)
    del loss
    assert_same(step(model, small_input()), wanted)
    assert_idle(model)


class Interrupt(torch.autograd.Function):
    """Ctrl-C in the middle of backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        raise KeyboardInterrupt


def test_keyboard_interrupt_in_backward(policy, tmp_path):
    def scenario(model):
        hook = model[1].register_forward_hook(lambda module, args, out: Interrupt.apply(out))
        loss = loss_of(model, 2)
        hook.remove()
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
        return step(model, small_input())

    assert compare(scenario, tmp_path, policy).packed_count > 0


def test_in_place_change_of_a_moved_tensor_raises(policy, tmp_path):
    model = offloaded(small_model(), tmp_path, policy)
    kept = []
    model[0].register_forward_hook(lambda module, args, out: kept.append(out))
    loss = loss_of(model)
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(memsys.MemsysError, match="modified by an inplace operation"):
        loss.backward()


def test_optimizer_step_between_forward_and_backward_raises(policy, tmp_path):
    model = offloaded(small_model(), tmp_path, policy)
    step(model, small_input())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_of(model)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    found = step(model, small_input())
    assert_same(found, step(memsys.restore(model), small_input()))


def test_saves_of_one_storage_around_a_legal_in_place_change_keep_their_own_values(policy, tmp_path):
    def scenario(context):
        weight, shared = small_model()[0].up.weight, small_input(3)
        with context:
            first = (shared @ weight.t()).square().sum()
            (before,) = torch.autograd.grad(first, weight, retain_graph=True)
            shared.add_(1)
            second = (shared @ weight.t()).square().sum()
        (after,) = torch.autograd.grad(second, weight)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(first, weight)
        return [before, after]

    wanted = scenario(nullcontext())
    assert not torch.equal(*wanted)
    context = memsys.offload_activations(policy=policy, min_bytes=1, spill_dir=str(tmp_path))
    assert_same(scenario(context), wanted)
    assert context.stats().packed_count > 0


def test_results_changed_in_place_by_the_next_layer(policy, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(inplace=True), nn.Linear(96, 64), nn.ELU(inplace=True))
    assert compare(lambda model: step(model, small_input()), tmp_path, policy, model).packed_count > 0


def test_backward_outside_the_context(policy, tmp_path):
    wanted = step(small_model(), small_input())
    model = small_model()
    with memsys.offload_activations(policy=policy, min_bytes=1, spill_dir=str(tmp_path)) as session:
        loss = loss_of(model)
    loss.backward()
    assert_same([loss, *gradients(model)], wanted)
    model.zero_grad()
    with session:
        loss = loss_of(model)
        loss.backward()
    assert_same([loss, *gradients(model)], wanted)
    assert _tensor.top_hooks() is None


def test_no_grad_moves_nothing(tmp_path):
    model = offloaded(small_model(), tmp_path)
    with torch.no_grad():
        found = model(small_input())
    assert_same([found], [small_model()(small_input())])
    assert memsys.stats(model).packed_count == 0
