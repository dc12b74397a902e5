"""Streamed blocks: how often each is read, that nothing else changes, and what is refused."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from streamed import WIDTH, Stack, inputs, plain_file, same, stack, step, twin
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import memsys
from memsys import InputError, UnsupportedError
from memsys.weights.away import AwayParameter


def again(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(block, x, use_reentrant=False)


def reentrant(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(block, x, use_reentrant=True)


def inside(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A checkpoint within the block's own call, which computes it again without calling the block."""
    return checkpoint(lambda value: type(block).forward(block, value), x, use_reentrant=False)


def is_away(parameter: torch.nn.Parameter) -> bool:
    return isinstance(parameter, AwayParameter)


def loads(model: torch.nn.Module) -> int:
    return memsys.stream_stats(model).load_count


def loads_of(model: torch.nn.Module, run) -> int:
    before = loads(model)
    run()
    return loads(model) - before


@pytest.mark.parametrize(("count", "window"), [(8, 1), (8, 2), (8, 3), (8, 7), (8, 8), (32, 1), (32, 4), (32, 31)])
def test_a_step_reads_two_times_what_the_window_lacks(count: int, window: int, tmp_path) -> None:
    model = stack(count)
    wanted = [step(twin(model), x) for x in inputs(3)]
    model = memsys.stream(model, plain_file(model, tmp_path), window=window)
    x = inputs(3)
    assert same(step(model, x[0]), wanted[0])
    assert loads(model) == 2 * count - window
    for index in (1, 2):
        before = loads(model)
        assert same(step(model, x[index]), wanted[index])
        assert loads(model) - before == 2 * (count - window)


@pytest.mark.parametrize("window", [2, 3, 8])
def test_an_evaluation_between_steps_costs_the_next_step_nothing(window: int, tmp_path) -> None:
    model = memsys.stream(stack(8), plain_file(stack(8), tmp_path), window=window)
    x = inputs()[0]
    step(model, x)
    for _ in range(2):
        with torch.no_grad():
            model(x)
        assert [loads_of(model, lambda: step(model, x)) for _ in range(2)] == [2 * (8 - window)] * 2
    for _ in range(5):
        with torch.no_grad():
            model(x)
    assert loads_of(model, lambda: step(model, x)) <= 2 * (8 - window) + 1  # many passes keep other blocks
    assert loads_of(model, lambda: step(model, x)) == 2 * (8 - window)


def test_micro_batches_each_walk_the_window(tmp_path) -> None:
    reference = stack(8)
    model = memsys.stream(stack(8), plain_file(stack(8), tmp_path), window=3)
    x = inputs(4)
    step(model, x[0])
    counts = []
    for value in x[1:]:
        before = loads(model)
        model(value).square().mean().backward()
        reference(value).square().mean().backward()
        counts.append(loads(model) - before)
    assert counts == [10, 10, 10]
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None)
        assert found.grad is None or torch.equal(found.grad, wanted.grad)


def selective(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Keeps the results of matrix products."""
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize("run", [again, reentrant, inside, selective])
def test_a_checkpoint_and_its_backward_share_a_visit(run, tmp_path) -> None:
    x = inputs()[0].requires_grad_()
    wanted = step(stack(8, run), x)
    model = memsys.stream(stack(8, run), plain_file(stack(8), tmp_path), window=3)
    assert same(step(model, x), wanted)
    step(model, x)
    for _ in range(2):
        assert loads_of(model, lambda: step(model, x)) == 10
    assert same(step(model, x), wanted)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_generation_reads_what_the_window_lacks_and_one(window: int, tmp_path) -> None:
    model = memsys.stream(stack(8).eval(), plain_file(stack(8), tmp_path), window=window)
    with torch.no_grad():
        model(inputs()[0])
        for _ in range(4):
            assert loads_of(model, lambda: model(inputs()[0])) <= 8 - window + 1


def test_two_forwards_then_one_backward(tmp_path) -> None:
    first, second = inputs(2)
    reference = stack(6)
    (reference(first).sum() + reference(second).square().sum()).backward()
    model = memsys.stream(stack(6), plain_file(stack(6), tmp_path), window=2)
    (model(first).sum() + model(second).square().sum()).backward()
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert found.grad is None or torch.equal(found.grad, wanted.grad)


def test_a_graph_that_is_kept_runs_backward_twice(tmp_path) -> None:
    model = memsys.stream(stack(6), plain_file(stack(6), tmp_path), window=1)
    loss = model(inputs()[0]).sum()
    loss.backward(retain_graph=True)
    once = [value.grad.clone() for value in model.parameters() if value.grad is not None]
    loss.backward()
    twice = [value.grad for value in model.parameters() if value.grad is not None]
    assert all(torch.equal(2 * one, two) for one, two in zip(once, twice, strict=True))


def test_autograd_holds_no_weight_of_a_block(tmp_path) -> None:
    """With room for one block, a second could not be bound if the graph held the first."""
    model = memsys.stream(stack(8), plain_file(stack(8), tmp_path), window=1)
    loss = model(inputs()[0]).sum()
    stats = memsys.stream_stats(model)
    assert stats.window_layers == 1
    assert stats.peak_resident_bytes <= stats.budget_bytes or stats.budget_bytes < 0
    assert all(is_away(block.up.weight) for block in model.blocks)
    loss.backward()


def test_budget_decides_the_window(tmp_path) -> None:
    path = plain_file(stack(8), tmp_path)
    one = memsys.stream_stats(memsys.stream(stack(8), path, window=1))
    slot = one.peak_resident_bytes or one.resident_bytes
    model = memsys.stream(stack(8), path, window=1)
    step(model, inputs()[0])
    slot = memsys.stream_stats(model).peak_resident_bytes
    model = memsys.stream(stack(8), path, device_budget=3 * slot + slot // 2)
    step(model, inputs()[0])
    stats = memsys.stream_stats(model)
    assert stats.window_layers == 3
    assert stats.peak_resident_bytes <= 3 * slot
    with pytest.raises(memsys.BudgetError, match="raise it"):
        memsys.stream(stack(8), path, device_budget=slot // 2)
    with pytest.raises(memsys.BudgetError, match="lower window"):
        memsys.stream(stack(8), path, device_budget=2 * slot, window=3)


def test_meta_model_is_never_built_whole(tmp_path) -> None:
    resident = stack(6)
    wanted = step(resident, inputs()[0])
    with torch.device("meta"):
        model = Stack(6)
    memsys.stream(model, plain_file(stack(6), tmp_path, but="none of them"), window=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    assert torch.equal(step_loss(model), wanted[0])


def step_loss(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(inputs()[0]).square().mean()


def test_meta_parameter_that_no_file_holds_is_named(tmp_path) -> None:
    with torch.device("meta"):
        model = Stack(3)
    with pytest.raises(InputError, match=r"blocks\.0\.adapter\.weight"):
        memsys.stream(model, plain_file(stack(3), tmp_path), window=1)


def test_a_checkpoint_that_reads_a_weight_before_any_module_is_called(tmp_path) -> None:
    def run(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        def inner(value: torch.Tensor) -> torch.Tensor:
            value = value + block.adapter(value)
            return torch.nn.functional.linear(value, block.up.weight, block.up.bias)

        return x + checkpoint(inner, x, use_reentrant=False)[..., :WIDTH]

    wanted = step(stack(6, run), inputs()[0])
    model = memsys.stream(stack(6, run), plain_file(stack(6), tmp_path), window=1)
    for _ in range(2):
        assert same(step(model, inputs()[0]), wanted)


def test_threads_share_a_window(tmp_path) -> None:
    x = inputs(4)
    wanted = [step(stack(5), value) for value in x]
    model = memsys.stream(stack(5), plain_file(stack(5), tmp_path), window=2)
    reference = stack(5).eval()

    def look(value: torch.Tensor) -> bool:
        with torch.no_grad():
            return all(torch.equal(model(value), reference(value)) for _ in range(5))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(look, x))
    assert same(step(model, x[0]), wanted[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_a_block_leaves_nothing(error: type[BaseException], tmp_path) -> None:
    model = memsys.stream(stack(4), plain_file(stack(4), tmp_path), window=1)

    def stop(*_: object) -> None:
        raise error

    hook = model.blocks[2].down.register_forward_hook(stop)
    with pytest.raises(error):
        model(inputs()[0])
    hook.remove()
    assert all(is_away(block.up.weight) for block in model.blocks)
    assert same(step(model, inputs()[0]), step(stack(4), inputs()[0]))


def test_a_window_held_by_others_is_refused_and_works_again(tmp_path) -> None:
    model = memsys.stream(stack(4), plain_file(stack(4), tmp_path), window=1)
    held = []
    hook = model.blocks[0].up.register_forward_hook(lambda module, *_: held.append(module.weight.detach()))
    with torch.no_grad(), pytest.raises(memsys.BudgetError, match=r"hold|use"):
        model(inputs()[0])
    assert torch.equal(held[0], stack(4).blocks[0].up.weight)
    hook.remove()
    held.clear()
    assert same(step(model, inputs()[0]), step(stack(4), inputs()[0]))


def test_offload_composes(tmp_path) -> None:
    x = torch.randn(64, 128, WIDTH, generator=torch.Generator().manual_seed(1))
    wanted = step(stack(6), x)
    for order in itertools.permutations(("stream", "offload")):
        model = stack(6)
        path = plain_file(model, tmp_path)
        for what in order:
            if what == "stream":
                memsys.stream(model, path, window=2)
            else:
                memsys.offload(model, policy="all", min_bytes=1024)
        for _ in range(3):
            assert same(step(model, x), wanted), order
        assert memsys.stats(model).packed_count > 0
        assert memsys.stream_stats(model).window_layers == 2
        memsys.restore(model)
        assert same(step(model, x), wanted)


def test_function_transforms_are_refused_by_name(tmp_path) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.grad(lambda x: model(x).sum())(inputs()[0])


def test_copies_that_autocast_makes_are_told_of(tmp_path, caplog) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs()[0])
        model(inputs()[0])
    assert sum("autocast" in record.message for record in caplog.records) == 1


def test_blocks_may_be_named(tmp_path) -> None:
    path = plain_file(stack(4), tmp_path)
    model = memsys.stream(stack(4), path, window=1, blocks=["blocks.1", "blocks.3"])
    assert memsys.stream_stats(model).block_count == 2
    assert same(step(model, inputs()[0]), step(stack(4), inputs()[0]))
    with pytest.raises(InputError, match=r"nowhere"):
        memsys.stream(stack(4), path, blocks="nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"window": 0}, "window"), ({"window": True}, "window"), ({"policy": "guess"}, "policy"),
     ({"verify": "maybe"}, "verify"), ({"device_budget": "much"}, "budget")],
)  # fmt: skip
def test_bad_options_are_named(arguments: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        memsys.stream(stack(3), plain_file(stack(3), tmp_path), **arguments)


def test_model_and_file_must_fit(tmp_path) -> None:
    path = plain_file(stack(3), tmp_path)
    with pytest.raises(InputError, match=r"bfloat16"):
        memsys.stream(stack(3).bfloat16(), path)
    with pytest.raises(InputError, match="no matrix"):
        memsys.stream(torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)]), path)
    with pytest.raises(InputError, match="repeated"):
        memsys.stream(torch.nn.Linear(3, 3), path)
    with pytest.raises(InputError, match="streamed already"):
        memsys.stream(memsys.stream(stack(3), path), path)
    with pytest.raises(OSError, match="nowhere"):
        memsys.stream(stack(3), str(tmp_path / "nowhere.safetensors"))
