"""The masked backward: gradients as those of the dense frozen FFN, and no row read that no token used."""

from __future__ import annotations

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from gradients import TIERS, assert_same
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import memsys
from memsys.errors import InPlaceError, InputError, UnsupportedError
from memsys.weights.masked import FrozenFfn, ResidentRows, bits_at, masked_ffn, pack_bits, union_of

LAYOUTS = ("zero_filled", "compacted")


class Case(NamedTuple):
    """A frozen FFN with about `share` of its neurons active, an input and the gradient of its output."""

    up: nn.Linear
    down: nn.Linear
    x: Tensor
    grad: Tensor

    @property
    def ffn(self) -> FrozenFfn:
        return FrozenFfn.of(self.up, F.relu, self.down)

    def source(self) -> ResidentRows:
        return ResidentRows(self.up.weight, self.down.weight)

    def dense(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))

    def used(self) -> int:
        """How many neurons any token of the input uses."""
        return int((self.up(self.x) > 0).flatten(0, -2).any(0).sum())


def case(shape=(2, 5), neurons=50, width=16, out=12, dtype=torch.float32, share=0.2, bias=True, seed=0) -> Case:
    torch.manual_seed(seed)
    up, down = nn.Linear(width, neurons), nn.Linear(neurons, out)
    with torch.no_grad():
        up.weight.normal_(std=width**-0.5)
        up.bias.fill_(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(share))))
    if not bias:
        up.bias = down.bias = None
    up, down = up.to(dtype).requires_grad_(False), down.to(dtype).requires_grad_(False)
    return Case(up, down, torch.randn(*shape, width, dtype=dtype), torch.randn(*shape, out, dtype=dtype))


def run(function, x: Tensor, grad: Tensor) -> list[Tensor]:
    """(output, gradient of x)."""
    x = x.detach().requires_grad_()
    y = function(x)
    y.backward(grad)
    return [y.detach(), x.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "neurons", "width"),
    [
        ((1, 1), 512, 128),
        ((7,), 50, 16),
        ((2, 5), 51, 16),
        ((3, 2, 4), 64, 32),
        ((1, 96), 1536, 256),
        ((4, 33), 1030, 96),
    ],
)
def test_zero_filled_equals_dense_to_the_last_bit(shape: tuple, neurons: int, width: int, dtype: torch.dtype) -> None:
    one = case(shape, neurons, width, dtype=dtype)
    source = one.source()
    assert 0 < one.used() <= neurons
    assert_same(run(lambda x: masked_ffn(x, one.ffn, source), one.x, one.grad), run(one.dense, one.x, one.grad))
    assert source.row_count == one.used()
    assert source.read_bytes == one.used() * (width + 12) * dtype.itemsize


@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.9), bias=st.booleans())
def test_any_ffn(seed: int, share: float, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, neurons, width = (int(torch.randint(1, top, (1,), generator=generator)) for top in (40, 200, 60))
    one = case((tokens,), neurons, width, share=share, bias=bias, seed=seed)
    wanted = run(one.dense, one.x, one.grad)
    source = one.source()
    assert_same(run(lambda x: masked_ffn(x, one.ffn, source), one.x, one.grad), wanted)
    found = run(lambda x: masked_ffn(x, one.ffn, source, layout="compacted"), one.x, one.grad)
    torch.testing.assert_close(found, wanted)
    assert source.row_count == 2 * one.used()


def test_inputs_and_gradients_of_any_strides() -> None:
    one = case((24,), 40, 16)
    flat = one.x
    wide = torch.randn(2, 16, 12)
    for x in (flat.t().contiguous().t(), flat[::2], wide.transpose(1, 2), wide.transpose(1, 2)[:, ::2]):
        for grad in (torch.ones(()).expand(*x.shape[:-1], 12), torch.randn(12, *x.shape[:-1]).movedim(0, -1)):
            found = run(lambda x: masked_ffn(x, one.ffn, one.source()), x, grad)
            assert_same(found, run(one.dense, x, grad))


def test_columns_that_lie_together() -> None:
    """torch multiplies in another order then, which at this size shows in the last bits."""
    one = case((5,), 1536, 384)
    x = one.x.t().contiguous().t()
    assert x.stride() == (1, 5)
    assert_same(run(lambda x: masked_ffn(x, one.ffn, one.source()), x, one.grad), run(one.dense, x, one.grad))


def test_the_last_bit_is_why_there_are_two_layouts() -> None:
    """Somewhere the compacted gradient differs from the dense one, or its promise would be too modest."""
    differs = False
    for seed in range(20):
        one = case((3,), 1536, 256, share=0.2, seed=seed)
        wanted = run(one.dense, one.x, one.grad)[1]
        found = run(lambda x, one=one: masked_ffn(x, one.ffn, one.source(), layout="compacted"), one.x, one.grad)[1]
        torch.testing.assert_close(found, wanted)
        differs |= not torch.equal(found, wanted)
    assert differs


def test_what_is_saved_is_one_bit_a_neuron_and_token() -> None:
    one, saved = case((2, 5), 51), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        masked_ffn(one.x.requires_grad_(), one.ffn, one.source())
    assert [(tensor.dtype, tensor.shape) for tensor in saved] == [(torch.uint8, (10, 7))]


class Elsewhere:
    """A source with its own copy of the weights, as a file has them."""

    def __init__(self, one: Case) -> None:
        self._up, self._down = one.up.weight.clone(), one.down.weight.t().clone()
        self.asked: list[Tensor] = []

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(ids)
        return self._up[ids], self._down[ids]

    def stamp(self) -> object:
        return None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_may_be_gone_before_backward(layout: str) -> None:
    one = case()
    wanted = run(one.dense, one.x, one.grad)
    x, source = one.x.clone().requires_grad_(), Elsewhere(one)
    y = masked_ffn(x, one.ffn, source, layout=layout)
    grad, used = one.grad, (one.up(one.x) > 0).flatten(0, -2).any(0).nonzero().flatten()
    weights = [weakref.ref(one.up.weight), weakref.ref(one.down.weight)]
    del one
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
    y.backward(grad)
    torch.testing.assert_close(x.grad, wanted[1])
    assert len(source.asked) == 1
    assert torch.equal(source.asked[0], used)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_on_up_moves_the_mask_and_gets_its_gradient(layout: str) -> None:
    one = case((2, 5), 51)
    torch.manual_seed(1)
    first, second = torch.randn(16, 4), torch.randn(4, 51)

    def step(is_masked: bool) -> list[Tensor]:
        x, a, b = (part.clone().requires_grad_() for part in (one.x, first, second))
        if is_masked:
            y = masked_ffn(x, one.ffn, one.source(), layout=layout, up_delta=x @ a @ b)
        else:
            y = one.down(F.relu(one.up(x) + x @ a @ b))
        y.backward(one.grad)
        return [y.detach(), x.grad, a.grad, b.grad]

    if layout == "zero_filled":
        assert_same(step(True), step(False))
    else:
        torch.testing.assert_close(step(True), step(False))


def test_only_the_adapter_wants_a_gradient() -> None:
    one = case((2, 5), 51)
    deltas = [torch.zeros(2, 5, 51, requires_grad=True) for _ in range(2)]
    masked_ffn(one.x, one.ffn, one.source(), up_delta=deltas[0]).backward(one.grad)
    one.down(F.relu(one.up(one.x) + deltas[1])).backward(one.grad)
    assert one.x.grad is None
    assert torch.equal(deltas[0].grad, deltas[1].grad)


def test_a_second_backward_reads_again_and_a_graph_is_used_up_without_retain_graph() -> None:
    one = case()
    x, source = one.x.clone().requires_grad_(), one.source()
    y = masked_ffn(x, one.ffn, source)
    y.backward(one.grad, retain_graph=True)
    first, x.grad = x.grad, None
    y.backward(one.grad)
    assert torch.equal(x.grad, first)
    assert source.row_count == 2 * one.used()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(one.grad)


def test_one_ffn_used_twice_in_a_graph() -> None:
    one = case((2, 5), 51, out=16)
    source = one.source()
    wanted = run(lambda x: one.dense(one.dense(x)), one.x, one.grad)
    assert_same(run(lambda x: masked_ffn(masked_ffn(x, one.ffn, source), one.ffn, source), one.x, one.grad), wanted)


def test_changed_weights_are_told() -> None:
    one = case()
    y = masked_ffn(one.x.requires_grad_(), one.ffn, one.source())
    one.down.weight.mul_(2)
    with pytest.raises(InPlaceError, match="changed between forward and backward"):
        y.backward(one.grad)


def test_no_derivative_of_the_derivative() -> None:
    one = case()
    y = masked_ffn(one.x.requires_grad_(), one.ffn, one.source())
    with pytest.raises(UnsupportedError, match="create_graph"):
        torch.autograd.grad(y.sum(), one.x, create_graph=True)


def test_what_one_bit_is_not_enough_for_is_refused() -> None:
    up, down = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 4).requires_grad_(False)
    with pytest.raises(UnsupportedError, match="gated"):
        FrozenFfn.of(up, nn.ReLU(), down, gate=nn.Linear(4, 8))
    for activation in (nn.GELU(), nn.ReLU6(), F.silu, lambda x: F.relu(x).square()):
        with pytest.raises(UnsupportedError, match="plain ReLU"):
            FrozenFfn.of(up, activation, down)
    with pytest.raises(UnsupportedError, match="adapter"):
        FrozenFfn.of(nn.Sequential(up), nn.ReLU(), down)
    with pytest.raises(UnsupportedError, match="up_bias wants a gradient"):
        FrozenFfn(up.weight, down.weight, nn.Parameter(torch.zeros(8)))
    with pytest.raises(InputError, match="transpose"):
        FrozenFfn(up.weight, down.weight.t())


def test_shapes_are_checked() -> None:
    one = case()
    for options in ({"x": torch.zeros(16)}, {"x": torch.zeros(2, 15)}, {"layout": "sparse"}, {"up_delta": one.x}):
        with pytest.raises(InputError, match="masked_ffn"):
            masked_ffn(**{"x": one.x, "ffn": one.ffn, "source": one.source()} | options)


def test_without_gradients_nothing_is_saved_or_read() -> None:
    one = case()
    source = one.source()
    with torch.no_grad():
        y = masked_ffn(one.x.clone().requires_grad_(), one.ffn, source)
    for plain in (y, masked_ffn(one.x, one.ffn, source)):
        assert not plain.requires_grad
        assert torch.equal(plain, one.dense(one.x))
    assert source.row_count == 0


def test_no_active_neuron_and_no_token() -> None:
    one = case()
    source = one.source()
    one.up.bias.fill_(-100)
    found = run(lambda x: masked_ffn(x, one.ffn, source), one.x, one.grad)
    assert_same(found, run(one.dense, one.x, one.grad))
    assert not found[1].any()
    for layout in LAYOUTS:
        _, gradient = run(lambda x, layout=layout: masked_ffn(x, one.ffn, source, layout=layout), one.x[:0],
                          one.grad[:0])  # fmt: skip
        assert gradient.shape == (0, 5, 16)
    assert source.row_count == 0


def test_a_nan_goes_through_as_it_does_without_masks() -> None:
    one = case()
    one.x[0, 0, 0] = float("nan")
    assert_same(run(lambda x: masked_ffn(x, one.ffn, one.source()), one.x, one.grad),
                run(one.dense, one.x, one.grad))  # fmt: skip


def test_under_autocast() -> None:
    one = case((4, 33), 1030, 96)

    def cast(function, backward_too: bool):
        x = one.x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x)
            if backward_too:
                y.backward(one.grad.to(y.dtype))
        if not backward_too:
            y.backward(one.grad.to(y.dtype))
        return [y.detach(), x.grad]

    outputs = masked_ffn(one.x.requires_grad_(), one.ffn, one.source()), one.dense(one.x)
    with torch.autocast("cpu", torch.bfloat16):  # around backward alone
        gradients = [torch.autograd.grad(y, one.x, one.grad)[0] for y in outputs]
    assert torch.equal(*gradients)
    one.x.requires_grad_(False)
    for backward_too in (False, True):
        found = cast(lambda x: masked_ffn(x, one.ffn, one.source()), backward_too)
        assert found[0].dtype is torch.bfloat16
        assert_same(found, cast(one.dense, backward_too))


def test_the_mask_is_offloaded_like_any_saved_tensor(tmp_path) -> None:
    """A mask of 128 tokens and 1024 neurons goes to a file, and comes back."""

    class Masked(nn.Module):
        def __init__(self, one: Case) -> None:
            super().__init__()
            self.one, self.source = one, one.source()

        def forward(self, x: Tensor) -> Tensor:
            return masked_ffn(x, self.one.ffn, self.source)

    one = case((128,), 1024, 64)
    model = memsys.offload(Masked(one), policy=TIERS["file"], min_bytes=1, spill_dir=str(tmp_path))
    assert_same(run(model, one.x, one.grad), run(one.dense, one.x, one.grad))
    assert memsys.stats(model).out_bytes == 128 * 1024 // 8


@given(seed=st.integers(0, 10**6), tokens=st.integers(0, 9), neurons=st.integers(1, 40))
def test_bits(seed: int, tokens: int, neurons: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(tokens, neurons, generator=generator) < 0.3
    bits = pack_bits(mask)
    assert bits.shape == (tokens, -(-neurons // 8))
    assert torch.equal(union_of(bits, neurons), mask.any(0).nonzero().flatten())
    ids = torch.randperm(neurons, generator=generator)[: neurons // 2 + 1].sort().values
    assert torch.equal(bits_at(bits, ids), mask[:, ids])
