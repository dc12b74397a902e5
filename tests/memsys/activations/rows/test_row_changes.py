"""What changes between a block's forward and the run of its rows is told, and gives no wrong gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from built import needs_memsys

needs_memsys()

from row_models import Block, Stack, divided, inputs, largest_error, loss_of, made, step  # noqa: E402

import memsys  # noqa: E402

CLOSE = 1e-10


def test_a_parameter_changed_in_place_raises(model):
    loss = loss_of(model, inputs())
    with torch.no_grad():
        model.layers[2].norm.bias.add_(1.0)  # which no operation saved
    with pytest.raises(memsys.InPlaceError):
        loss.backward()


def test_an_input_changed_in_place_raises(tmp_path):
    class Careless(Stack):
        def forward(self, x):
            y = self.layers[1](self.layers[0](x))
            with torch.no_grad():
                x.mul_(2.0)
            return y

    model, _ = divided(made(lambda: Careless(Block(), Block())), tmp_path, 0.3)
    x = inputs()
    with pytest.raises(memsys.InPlaceError):
        loss_of(model, x).backward()


def test_a_saved_tensor_changed_in_place_raises(tmp_path):
    class Careless(Block):
        def between(self, h):
            y = F.gelu(h)
            with torch.no_grad():
                h.mul_(2.0)
            return y

    model, policy = divided(made(lambda: Stack(Careless(), Careless())), tmp_path, 0.3)
    for _ in range(2):
        with pytest.raises(memsys.InPlaceError):
            loss_of(model, inputs()).backward()
    assert policy.divided


def test_a_change_that_autograd_does_not_count_is_noticed(model):
    loss = loss_of(model, inputs())
    model.layers[1].up.weight.data = model.layers[1].up.weight.data * 3
    with pytest.raises(memsys.CorruptionError, match="other values"):
        loss.backward()


def test_another_way_through_the_block_is_noticed(model):
    loss = loss_of(model, inputs())
    model.layers[1].between = torch.relu
    with pytest.raises(memsys.CorruptionError, match="made by ReluBackward0"):
        loss.backward()


def test_a_change_of_mode_is_noticed(model):
    loss = loss_of(model, inputs())
    model.eval()
    with pytest.raises(memsys.CorruptionError, match="training"):
        loss.backward()
    model.train()


def test_a_hook_that_may_change_the_arguments_declines(model, plain):
    hook = model.layers[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    other = plain.layers[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert any("pre-hook" in reason for reason in model.policy_of_test.reasons)
    hook.remove()
    other.remove()
