"""What a streamed model refuses, and what it reads from the file: state dicts, copies, conversions, writes, restore."""

import copy
import pickle

import pytest
import torch
from streamed import WIDTH, inputs, plain_file, same, stack, step

import memsys
from memsys import InputError, UnsupportedError


def test_state_dict_reads_the_file(tmp_path) -> None:
    resident = stack(4)
    model = memsys.stream(stack(4), plain_file(resident, tmp_path), window=1)
    state, wanted = model.state_dict(), resident.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert all(type(value) is torch.Tensor and torch.equal(value, wanted[name]) for name, value in loaded.items())
    fresh = stack(4)
    for parameter in fresh.parameters():
        torch.nn.init.zeros_(parameter)
    fresh.load_state_dict(state)
    assert same(step(fresh, inputs()[0]), step(resident, inputs()[0]))


def test_copies_and_conversions_are_refused_and_change_nothing(tmp_path) -> None:
    model = memsys.stream(stack(4), plain_file(stack(4), tmp_path), window=2)
    wanted = step(stack(4), inputs()[0])
    for refused in (lambda: copy.deepcopy(model), lambda: pickle.dumps(model.blocks[0]), model.double, model.half,
                    lambda: model.to("meta"), lambda: model.blocks[1].up.to(torch.bfloat16)):  # fmt: skip
        with pytest.raises(UnsupportedError, match=r"memsys\.restore|state_dict"):
            refused()
    model.to("cpu").to(torch.float32).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same(step(model, inputs()[0]), wanted)


def test_restore_brings_every_weight_back(tmp_path) -> None:
    resident = stack(4)
    model = memsys.stream(stack(4), plain_file(resident, tmp_path), window=1)
    loss = model(inputs()[0]).square().mean()
    assert memsys.restore(model) is model
    loss.backward()  # made while it was streamed
    model.zero_grad()
    assert same(step(model, inputs()[0]), step(resident, inputs()[0]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resident.parameters(), strict=True))
    assert "forward" not in model.blocks[0].__dict__
    copy.deepcopy(model)
    with pytest.raises(InputError, match="not streamed"):
        memsys.stream_stats(model)


def test_streamed_weights_are_frozen(tmp_path) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    assert not model.blocks[0].up.weight.requires_grad
    model.blocks[1].up.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"blocks\.1\.up\.weight.*frozen"):
        model(inputs()[0])
    model.blocks[1].up.weight.requires_grad_(False)
    assert same(step(model, inputs()[0]), step(stack(3), inputs()[0]))


@pytest.mark.parametrize("window", [1, 4])
def test_a_write_to_a_weight_in_place_raises_and_is_undone(window: int, tmp_path) -> None:
    model = memsys.stream(stack(4), plain_file(stack(4), tmp_path), window=window)

    def change(module: torch.nn.Module, *_: object) -> None:
        with torch.no_grad():
            module.weight.mul_(2)

    hook = model.blocks[1].up.register_forward_hook(change)
    with pytest.raises(memsys.InPlaceError, match=r"blocks\.1\.up\.weight"):
        model(inputs()[0])
    hook.remove()
    assert same(step(model, inputs()[0]), step(stack(4), inputs()[0]))


def test_a_weight_that_is_away_reads_as_it_is_and_is_not_written_to(tmp_path) -> None:
    resident = stack(4)
    model = memsys.stream(stack(4), plain_file(resident, tmp_path), window=1)
    away, wanted = model.blocks[2].up.weight, resident.blocks[2].up.weight.detach()
    assert torch.equal(away, wanted) and torch.equal(away.data[3:5] * 2, wanted[3:5] * 2)
    assert torch.equal(inputs()[0] @ away.t(), inputs()[0] @ wanted.t())
    assert away.shape == wanted.shape and away.stride() == wanted.stride() and away.is_contiguous()

    def assign() -> None:
        away.data = torch.zeros_like(wanted)

    writes = [lambda: torch.nn.init.zeros_(away), lambda: away.data.mul_(2), assign,
              lambda: torch.add(wanted, 1, out=away),
              lambda: model.state_dict()["blocks.2.up.weight"].zero_()]  # fmt: skip
    for write in writes:
        with torch.no_grad(), pytest.raises(memsys.InPlaceError):
            write()
    assert same(step(model, inputs()[0]), step(resident, inputs()[0]))


def test_parameters_that_changed_after_stream_are_what_the_state_says(tmp_path) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    fresh = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
    model.blocks[0].up.weight = fresh
    assert torch.equal(model.state_dict()["blocks.0.up.weight"], fresh)
    moved = torch.nn.Linear(1, 1)
    moved.weight = model.blocks[1].up.weight
    assert torch.equal(moved.state_dict()["weight"], stack(3).blocks[1].up.weight)


def test_restore_inside_a_forward_is_refused(tmp_path) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    hook = model.blocks[1].down.register_forward_hook(lambda *_: memsys.restore(model))
    with pytest.raises(UnsupportedError, match=r"blocks\.1"):
        model(inputs()[0])
    hook.remove()
    assert same(step(model, inputs()[0]), step(stack(3), inputs()[0]))


def test_a_conversion_keeps_the_order_of_parameters(tmp_path) -> None:
    model = memsys.stream(stack(3), plain_file(stack(3), tmp_path), window=1)
    before = [name for name, _ in model.named_parameters()]
    model.to("cpu")
    assert [name for name, _ in model.named_parameters()] == before
    with pytest.raises(UnsupportedError):
        model.blocks[0].half()
    assert {value.dtype for value in model.parameters()} == {torch.float32}
