"""What token-wise does is what its formula says: bytes to the byte, FLOPs to the share, gradients to the tolerance."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys
from torch.utils.flop_counter import FlopCounterMode

needs_memsys()

from gradients import assert_idle, assert_same  # noqa: E402
from row_models import MODELS, Block, Stack, divided, inputs, largest_error, made, step  # noqa: E402

import memsys  # noqa: E402

ALPHAS = [number / 10 for number in range(11)]
ROWS_COUNT = 20


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_gradients_at_every_share(name, batch, tmp_path):
    plain = made(MODELS[name])
    wanted = step(plain, inputs(batch, ROWS_COUNT))
    model, policy = divided(plain, tmp_path)
    step(model, inputs(batch, ROWS_COUNT))
    swapped = {}
    for alpha in ALPHAS:
        policy.alpha = alpha
        policy.asked.clear()
        before = memsys.stats(model)
        found = step(model, inputs(batch, ROWS_COUNT))
        after = memsys.stats(model)
        swapped[alpha] = after.out_bytes - before.out_bytes
        assert swapped[alpha] == policy.swapped_bytes(ROWS_COUNT)
        assert len(policy.divided) >= 16 and policy.reasons == set()
        # What is not swapped of a tensor is computed, no more and no less.
        whole = sum(saved.bytes for saved in policy.asked)
        assert after.remade_bytes - before.remade_bytes == whole - swapped[alpha]
        assert largest_error(found, wanted) < 1e-11
        if alpha == 1:
            assert_same(found, wanted)
    assert swapped[0.0] < swapped[0.5] < swapped[1.0]
    assert_idle(model)


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_is_close(name, tmp_path):
    plain = made(MODELS[name], torch.float32)
    x = inputs(2, ROWS_COUNT, torch.float32)
    wanted = step(plain, x)
    model, policy = divided(plain, tmp_path, 0.4)
    step(model, x)
    assert largest_error(step(model, x), wanted) < 1e-4
    policy.alpha = 1.0
    assert_same(step(model, x), wanted)


class SplitBlock(Block):
    """The reference: everything but attention on rows [0, first) and on the others, put together."""

    first = 0

    def forward(self, x):
        def by_rows(function, *tensors):
            parts = [function(*(t[:, : self.first] for t in tensors)), function(*(t[:, self.first :] for t in tensors))]
            return torch.cat(parts, 1)

        x = by_rows(lambda rows, a: rows + self.out(a), x, self.attend(by_rows(self.norm, x)))
        return by_rows(lambda rows: rows + self.down(self.between(self.up(self.norm2(rows)))), x)


def test_the_error_is_that_of_a_row_split_reference(tmp_path):
    width, rows, x = 64, 96, torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(1))
    plain = made(lambda: Stack(Block(width), Block(width)), torch.float32)
    split = made(lambda: Stack(SplitBlock(width), SplitBlock(width)), torch.float32)
    SplitBlock.first = int(0.3 * rows)
    wanted = step(plain, x)
    model, _ = divided(plain, tmp_path, 0.3)
    step(model, x)
    error, reference = largest_error(step(model, x), wanted), largest_error(step(split, x), wanted)
    assert error <= 2 * reference + 1e-6
    assert reference < 1e-4


def flops(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_flops_are_the_dropped_share_of_the_segment(name, tmp_path):
    plain = made(MODELS[name])
    x = inputs(2, ROWS_COUNT)
    model, policy = divided(plain, tmp_path)
    step(model, x)

    def backward_flops() -> int:
        loss = model(x).square().mean()
        return flops(loss.backward)

    counts = {}
    for alpha in ALPHAS:
        policy.alpha = alpha
        counts[alpha] = backward_flops()
    whole = counts[0.0] - counts[1.0]
    assert whole > 0
    assert counts[1.0] == flops(plain(x).square().mean().backward)
    for alpha in ALPHAS:
        assert counts[alpha] - counts[1.0] == pytest.approx((1 - alpha) * whole, abs=1)


def test_attention_and_what_follows_the_last_saved_tensor_are_not_computed_again(tmp_path):
    plain = made(lambda: Stack(Block(), Block()))
    x = inputs(2, ROWS_COUNT)
    model, _ = divided(plain, tmp_path, 0.0)
    step(model, x)
    loss, plain_loss = model(x).square().mean(), plain(x).square().mean()
    again = flops(loss.backward) - flops(plain_loss.backward)
    tokens, width = 2 * ROWS_COUNT, x.shape[-1]
    needed = 2 * tokens * (3 * width * width + width * width + 4 * width * width)  # qkv, out, up; not down
    assert again == 2 * needed


@pytest.mark.parametrize("name", MODELS)
def test_a_single_row_is_made_among_others(name, tmp_path):
    """A run on one row may be another run; what it swaps and makes stays what the formula says."""
    plain = made(MODELS[name])
    x = inputs(2, 10)
    wanted = step(plain, x)
    model, policy = divided(plain, tmp_path, 0.9)
    step(model, x)
    policy.asked.clear()
    before = memsys.stats(model).out_bytes
    assert largest_error(step(model, x), wanted) < 1e-11
    assert memsys.stats(model).out_bytes - before == policy.swapped_bytes(10)
    assert policy.divided
