"""What can't be computed again by rows is told so, with its reason, and moved whole: right, counted, said once."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from built import needs_memsys
from torch import nn
from torch.utils.checkpoint import checkpoint

needs_memsys()

from gradients import assert_same, bits_equal  # noqa: E402
from row_models import WIDTH, Block, Encoder, Stack, divided, gpt2, inputs, llama, made, step  # noqa: E402

import memsys  # noqa: E402
from memsys.activations.rows import attention  # noqa: E402
from memsys.activations.rows import profile as profiles  # noqa: E402
from memsys.activations.rows.profile import RowProfile, profile  # noqa: E402
from memsys.activations.rows.refused import Declined, RefusedError  # noqa: E402


class Between(Block):
    """A block with something more in its middle."""

    def __init__(self, what) -> None:
        super().__init__()
        self.what = what() if isinstance(what, type) or callable(what) else what

    def between(self, h):
        return self.what(F.gelu(h))


class Normed(nn.Module):
    """Batch statistics over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4 * WIDTH)

    def forward(self, h):
        return self.norm(h.flatten(0, 1)).view_as(h)


class Along(nn.Module):
    """A causal convolution along the sequence; with `zero`, one that does nothing yet, and is not trained yet."""

    def __init__(self, zero: bool = False) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(2) if zero else torch.ones(2), requires_grad=not zero)

    def forward(self, h):
        return h + self.kernel[0] * F.pad(h, (0, 0, 1, 0))[:, :-1] + self.kernel[1] * h


class Summed(nn.Module):
    def forward(self, h):
        return h.cumsum(1) * 0.1


class Placed(nn.Module):
    """Positions counted from the shape: those of a part of the rows are others."""

    def forward(self, h):
        return h * (1 + torch.arange(h.shape[1], dtype=h.dtype)[:, None])


class Counting(nn.Module):
    """Depends on how often it was called."""

    calls = 0

    def forward(self, h):
        Counting.calls += 1
        return h * float(Counting.calls)


class Remembering(nn.Module):
    """Keeps a buffer of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4 * WIDTH))

    def forward(self, h):
        self.mean.mul_(0.9).add_(h.detach().mean((0, 1)), alpha=0.1)
        return h * 2


class Noise(nn.Module):
    def forward(self, h):
        return h * torch.rand_like(h)


class Fickle(nn.Module):
    """The same result by another operation where there are few rows."""

    def forward(self, h):
        y = h + h if h.shape[1] > 5 else h * 2.0
        return y * y


class Sparing(nn.Module):
    """Saves less where there are few rows."""

    def forward(self, h):
        return h * h if h.shape[1] > 5 else h * 2.0


class Rechecked(nn.Module):
    def forward(self, h):
        return checkpoint(F.silu, h, use_reentrant=False)


class Global(nn.Module):
    """Attention without a fused operation."""

    def forward(self, h):
        return torch.softmax(h @ h.transpose(1, 2), -1) @ h


BETWEEN = {
    "dropout": (lambda: nn.Dropout(0.1), "random"),
    "noise": (Noise, "random"),
    "batch norm": (Normed, "differ|other values|buffer"),
    "a buffer": (Remembering, "buffer"),
    "convolution": (Along, "not token-local"),
    "convolution that starts at zero": (lambda: Along(zero=True), "not token-local"),
    "sum": (Summed, "not token-local"),
    "positions by shape": (Placed, "not token-local"),
    "global state": (Counting, "not token-local"),
    "another way for few rows": (Fickle, "another operation"),
    "less for few rows": (Sparing, "tensors instead of"),
    "checkpoint": (Rechecked, "checkpoint"),
    "attention by hand": (Global, "shape|not token-local|another"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_block_that_is_not_token_local_moves_whole(name, tmp_path, caplog):
    make, reason = BETWEEN[name]
    plain = made(lambda: Stack(Between(make), Between(make)))
    model, policy = divided(plain, tmp_path, 0.3)
    results = []
    with caplog.at_level(logging.WARNING, logger="memsys"):
        for one in (model, plain):
            torch.manual_seed(3)
            results.append([step(one, inputs()) for _ in range(3)])
    assert policy.divided == []
    assert len(policy.reasons) == 1
    assert re.search(reason, next(iter(policy.reasons))), policy.reasons
    assert sum("not divided by rows" in record.message for record in caplog.records) == 1
    assert memsys.stats(model).undivided_count > 0 and memsys.stats(model).remade_bytes == 0
    if name != "global state":
        for found, wanted in zip(*results, strict=True):
            assert_same(found, wanted)


def test_a_trial_leaves_the_block_and_the_generators_as_they_are(tmp_path):
    plain = made(lambda: Stack(Between(Remembering), Between(Noise)))
    before = [value.clone() for value in plain.state_dict().values()]
    local = made(Block)
    state = torch.get_rng_state()
    for block in plain.layers:
        assert isinstance(profile(block, (inputs(),), {}), Declined)
    assert isinstance(profile(local, (inputs(),), {}), RowProfile)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bits_equal(*pair) for pair in zip(plain.state_dict().values(), before, strict=True))
    assert all(parameter.grad is None for parameter in plain.parameters())


def test_dropout_counts_only_where_it_drops():
    block = made(lambda: Between(lambda: nn.Dropout(0.1)))
    assert isinstance(profile(block, (inputs(),), {}), Declined)
    assert isinstance(profile(block.eval(), (inputs(),), {}), RowProfile)
    block.train().what.p = 0.0
    assert isinstance(profile(block, (inputs(),), {}), RowProfile)


def test_attention_dropout_is_refused(tmp_path):
    plain = made(lambda: gpt2(attn_pdrop=0.1))
    model, policy = divided(plain, tmp_path)
    for _ in range(2):
        step(model, inputs())
    assert policy.divided == [] and "dropout" in next(iter(policy.reasons))


@pytest.mark.parametrize("operation", sorted(attention.OPERATIONS, key=str), ids=str)
def test_no_operation_may_drop_out_or_mask(operation):
    q = torch.randn(1, 1, 4, 8)
    names = [argument.name for argument in operation._schema.arguments]
    mask = next((name for name in names if name in ("attn_mask", "attn_bias")), None)
    for kwargs, reason in (({"dropout_p": 0.5}, "random"), ({mask: torch.zeros(4, 4)}, "mask")):
        if mask is None and reason == "mask":
            continue
        given = {"compute_log_sumexp": True, "attn_bias": None} | kwargs
        given = {name: value for name, value in given.items() if name in names}
        with pytest.raises(RefusedError, match=reason), attention.AttentionMode():
            operation(q, q, q, **given)


def test_eager_attention_is_refused(tmp_path):
    plain = made(lambda: llama(attn_implementation="eager"))
    model, policy = divided(plain, tmp_path)
    step(model, inputs())
    assert_same(step(model, inputs()), step(plain, inputs()))
    assert policy.divided == [] and len(policy.reasons) == 1


class Cache:
    """Something that a block may write to."""


class Masked(Block):
    def forward(self, x, mask=None, cache=None, scale=None):
        batch, rows, width = x.shape
        q, k, v = (part.view(batch, rows, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, rows, width)
        return x + self.out(a if scale is None else a * scale)


def test_masks_caches_and_arguments_that_do_not_slice_are_refused():
    block, x = made(Masked), inputs()
    assert isinstance(profile(block, (x,), {}), RowProfile)
    square = torch.ones(10, 10, dtype=torch.bool).tril()
    for kwargs, reason in [
        ({"mask": square}, "mask"),
        ({"mask": square.expand(2, 1, 10, 10)}, "mask"),
        ({"mask": torch.zeros(2, 1, 1, 10).double()}, "mask"),
        ({"cache": Cache()}, "Cache"),
        ({"cache": [Cache()]}, "Cache"),
        ({"scale": torch.ones(2, 10, 10)[..., :1].expand(2, 10, 32)[:, :5].repeat(1, 2, 1).double()}, None),
        ({"scale": torch.ones(10, 1).double()}, None),
        ({"scale": torch.ones(5, 2, 1).double().reshape(10, 1)[None].expand(2, 10, 32)}, None),
    ]:
        verdict = profile(block, (x,), kwargs)
        if reason is None:
            assert isinstance(verdict, RowProfile), kwargs
        else:
            assert isinstance(verdict, Declined) and reason in verdict.reason, (kwargs, verdict)


class TwoLengths(Block):
    """Its second argument has the sequence merged with the width."""

    def forward(self, x, flat):
        return super().forward(x) + flat.view(x.shape)


def test_a_position_argument_that_does_not_slice_is_refused():
    verdict = profile(made(TwoLengths), (inputs(), inputs().flatten(1)), {})
    assert isinstance(verdict, Declined)


def test_an_argument_changed_in_place_is_refused():
    class Greedy(Block):
        def forward(self, x):
            y = super().forward(x)
            with torch.no_grad():
                x.add_(1.0)
            return y

    verdict = profile(made(Greedy), (inputs(),), {})
    assert isinstance(verdict, Declined) and "in place" in verdict.reason


def test_the_batch_is_never_the_sequence():
    x = inputs(5, 10)
    assert profile(made(Block), (x,), {}).dim == 1
    encoder = made(lambda: Encoder(batch_first=False)).encoder.layers[0]
    assert profile(encoder, (x.transpose(0, 1).contiguous(),), {}).dim == 0
    assert (
        profile(
            made(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))), (x[0],), {}
        ).dim
        == 0
    )


def test_the_batch_is_not_taken_for_a_sequence_that_is_too_short():
    encoder = made(lambda: Encoder(batch_first=False)).encoder.layers[0]
    verdict = profile(encoder, (inputs(5, 3).transpose(0, 1).contiguous(),), {})
    assert isinstance(verdict, Declined) and "attention does not run along" in verdict.reason


def test_verdicts_are_shared_by_layers_and_lengths_and_by_nothing_else(monkeypatch):
    trials = []
    judged = profiles._judged
    monkeypatch.setattr(profiles, "_verdicts", {})
    monkeypatch.setattr(profiles, "_judged", lambda *args: trials.append(args) or judged(*args))
    one, other = made(Block), made(Block)
    for block, rows in ((one, 10), (other, 10), (one, 33), (other, 7)):
        assert isinstance(profile(block, (inputs(2, rows),), {}), RowProfile)
    assert len(trials) == 1
    profile(one, (inputs(3, 10),), {})
    profile(one.eval(), (inputs(2, 10),), {})
    other.heads = 2
    profile(other, (inputs(2, 10),), {})
    profile(one, (inputs(2, 10).transpose(0, 1).contiguous().transpose(0, 1),), {})
    assert len(trials) == 5


def test_few_positions_are_not_divided():
    assert isinstance(profile(made(Block), (inputs(2, 3),), {}), Declined)


def test_token_local_wants_a_module():
    with pytest.raises(memsys.InputError, match="wanted a torch"):
        memsys.token_local(lambda x: x)


class Single(nn.Module):
    """One block, in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)


def test_a_declared_module_is_divided_and_an_undeclared_one_is_not(tmp_path):
    plain = made(Single)
    model, policy = divided(plain, tmp_path)
    step(model, inputs())
    assert all(saved.row_segment is None for saved in policy.asked)
    assert memsys.token_local(plain.block) is plain.block
    model, policy = divided(plain, tmp_path)
    for _ in range(2):
        step(model, inputs())
    assert len(policy.divided) > 8


def test_a_policy_may_not_return_rows_of_anything_else(tmp_path):
    plain = made(lambda: Stack(Block(), Block()))
    for answer, error in [
        (lambda saved: memsys.ROWS(0.5, "segment"), memsys.UnsupportedError),
        (lambda saved: memsys.ROWS(0.5, None), memsys.UnsupportedError),
        (lambda saved: memsys.ROWS(1.5, saved.row_segment), memsys.InputError),
        (lambda saved: memsys.ROWS(float("nan"), saved.row_segment), memsys.InputError),
    ]:
        model = memsys.offload(plain, policy=answer, spill_dir=str(tmp_path), min_bytes=1)
        with pytest.raises(error):
            model(inputs())
    memsys.restore(plain)


def test_one_segment_has_one_share(tmp_path):
    model, policy = divided(made(lambda: Stack(Block(), Block())), tmp_path)
    step(model, inputs())
    shares = iter([0.2, 0.6] * 100)
    policy_of = policy.__class__.__call__

    class Two(policy.__class__):
        def __call__(self, saved):
            self.alpha = next(shares)
            return policy_of(self, saved)

    policy.__class__ = Two
    with pytest.raises(memsys.InputError, match="same alpha"):
        model(inputs())
