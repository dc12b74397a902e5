"""Every kind of tensor autograd may save comes back as it was (layout, dtype, flags, subclass), or is left alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from built import needs_memsys

needs_memsys()

from gradients import TIERS, assert_same  # noqa: E402
from traced_pair import Pair  # noqa: E402

import memsys  # noqa: E402

COUNT = 96


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Keep(torch.autograd.Function):
    """Saves a tensor as it is, and hands what comes back to the test."""

    @staticmethod
    def forward(ctx, x, saved, found):
        ctx.save_for_backward(saved)
        ctx.found = found
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        ctx.found.extend(ctx.saved_tensors)
        return slope, None, None


def round_trip(saved, policy, spill_dir):
    """(the tensor as backward finds it, stats)."""
    found = []
    leaf = torch.ones(1, requires_grad=True)
    with memsys.offload_activations(policy=policy, min_bytes=1, spill_dir=spill_dir) as session:
        out = Keep.apply(leaf, saved, found)
    session.drain()
    out.backward()
    return found[0], session.stats()


BASE = noise(COUNT, COUNT)
SHAPES = {
    "contiguous": BASE,
    "transposed": BASE.t(),
    "view with an offset": BASE[3:, 5:],
    "every second column": BASE[:, ::2],
    "flipped strides": noise(4, 5, 6, 7).permute(3, 1, 0, 2),
    "channels last": noise(2, 8, 16, 16).to(memory_format=torch.channels_last),
    "expanded": noise(COUNT, 1).expand(COUNT, 50),
    "overlapping": noise(4000).as_strided((1000, 8), (3, 1)),
    "complex": noise(64, 64, dtype=torch.complex64),
    "conjugate": noise(64, 64, dtype=torch.complex64).conj(),
    "negated": noise(64, 64, dtype=torch.complex64).conj().imag,
    "real part": noise(64, 64, dtype=torch.complex64).real,
    "double": BASE.double(),
    "half": BASE.half(),
    "bfloat16": BASE.bfloat16(),
    "float8": BASE.to(torch.float8_e4m3fn),
    "bool": BASE > 0,
    "int64": torch.arange(5000),
    "uint8": torch.arange(20000).to(torch.uint8)[3:],
    "int16": torch.arange(9000).to(torch.int16)[1:],
    "0-dimensional": torch.tensor(3.5),
    "one odd byte": torch.tensor([7], dtype=torch.uint8),
    "NaN and infinities": torch.tensor([float("nan"), float("inf"), -0.0] * 2000),
}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("kind", SHAPES)
def test_strided_tensors_come_back_as_they_were(kind, tier, tmp_path):
    saved = SHAPES[kind]
    found, stats = round_trip(saved, TIERS[tier], tmp_path)
    assert stats.packed_count == 1
    assert found.dtype == saved.dtype and found.shape == saved.shape and found.stride() == saved.stride()
    assert found.is_conj() == saved.is_conj() and found.is_neg() == saved.is_neg()
    assert (
        found.resolve_conj()
        .resolve_neg()
        .contiguous()
        .flatten()
        .view(torch.uint8)
        .equal(saved.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8))
    )


def sparse():
    return torch.sparse_coo_tensor(
        torch.tensor([[0, 2], [1, 3]]), torch.ones(2), (4, 4), check_invariants=True
    ).coalesce()


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        return torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8)


PASSED = {
    "sparse": sparse,
    "zero-size": lambda: torch.empty(0, 7),
    "zero-size view": lambda: BASE[:, :0],
    "meta": lambda: torch.empty(64, 64, device="meta"),
    "quantized": quantized,
}


@pytest.mark.parametrize("kind", PASSED)
def test_what_cannot_move_is_passed_and_counted(kind, tmp_path):
    saved = PASSED[kind]()
    found, stats = round_trip(saved, "all", tmp_path)
    assert (stats.packed_count, stats.passed_count, stats.out_bytes) == (0, 1, 0)
    assert found.shape == saved.shape and found.dtype == saved.dtype and found.layout == saved.layout
    if kind == "sparse":
        assert torch.equal(found.to_dense(), saved.to_dense())


def test_tensors_under_the_least_size_are_passed(tmp_path):
    with memsys.offload_activations(policy="all", min_bytes=BASE.nbytes, spill_dir=tmp_path) as session:
        Keep.apply(torch.ones(1, requires_grad=True), BASE, [])
        Keep.apply(torch.ones(1, requires_grad=True), BASE[1:], [])
    assert (session.stats().packed_count, session.stats().passed_count) == (1, 1)


def test_aliases_of_one_storage_move_once_and_come_back_aliased(tmp_path):
    fused, found = noise(64, 3, 64), []
    with memsys.offload_activations(policy="all", min_bytes=1, spill_dir=tmp_path) as session:
        out = torch.ones(1, requires_grad=True)
        for part in (fused, fused.transpose(0, 2), fused):
            out = Keep.apply(out, part, found)
    session.drain()
    out.backward()
    stats = session.stats()
    assert stats.out_bytes == fused.nbytes and stats.aliased_bytes == 2 * fused.nbytes
    assert_same(found, [fused, fused.transpose(0, 2), fused])
    found[0].fill_(1)  # seen through the others: one memory
    assert (found[1] == 1).all()


@pytest.mark.parametrize("tier", TIERS)
def test_a_wrapper_subclass_moves_by_its_parts(tier, tmp_path):
    saved = Pair(noise(64, 64), noise(64, 64, seed=1))
    found, stats = round_trip(saved, TIERS[tier], tmp_path)
    assert stats.packed_count == 2 and stats.out_bytes == 2 * 64 * 64 * 4
    assert type(found) is Pair
    assert_same([found.first, found.second], [saved.first, saved.second])


def test_a_wrapper_subclass_in_a_graph(tmp_path):
    def slope(context):
        x = Pair(noise(64, 64), noise(64, 64, seed=1)).requires_grad_()
        with context:
            y = (x * x).sin()
        y.backward(Pair(torch.ones(64, 64), torch.ones(64, 64)))
        return [x.grad.first, x.grad.second]

    from contextlib import nullcontext

    session = memsys.offload_activations(policy="all", min_bytes=1, spill_dir=tmp_path)
    assert_same(slope(session), slope(nullcontext()))
    assert session.stats().packed_count > 0


def test_a_change_of_a_wrapper_subclass_after_the_save_raises(tmp_path):
    saved = Pair(noise(64, 64), noise(64, 64, seed=1))
    with memsys.offload_activations(policy="all", min_bytes=1, spill_dir=tmp_path):
        out = Keep.apply(torch.ones(1, requires_grad=True), saved, [])
    saved.add_(1)
    with pytest.raises(memsys.InPlaceError):
        out.backward()
