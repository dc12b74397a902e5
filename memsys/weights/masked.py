"""The exact masked backward of a frozen, ungated ReLU FFN: y = relu(x Up^T + b) Down^T + c.

The input's gradient is dX = ((dY Down) * mask) Up, where the mask says which neurons were active. A bit a neuron and
token, saved in forward, thus tells backward exactly which rows of Up and columns of Down it needs: those of neurons
that any token used. Nothing of the weights is saved; a row source brings the rows, one read for both products. (The
idea of rows on demand is from "LLM in a flash", Alizadeh et al., ACL 2024, which leaves training open.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memsys import _tensor
from memsys.errors import InPlaceError, InputError, UnsupportedError

Layout = Literal["zero_filled", "compacted"]
_LAYOUTS = ("zero_filled", "compacted")


class RowSource(Protocol):
    """Brings the weights of some neurons."""

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of Up (m, width), columns of Down as rows (m, output width)) of the neurons `ids`: int64 (m,) on the
        CPU, ascending, none twice."""

    def stamp(self) -> object:
        """Something that compares unequal after the weights changed."""


class ResidentRows:
    """Rows of weights in memory: `up` (neurons, width) and `down` (output width, neurons), as nn.Linear has them.
    `row_count` and `read_bytes` count what backward asked for."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        self._up, self._down = up.detach(), down.detach()
        self.row_count = self.read_bytes = 0

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        where = ids.to(self._up.device)
        found = self._up.index_select(0, where), self._down.index_select(1, where).t()
        self.row_count += len(ids)
        self.read_bytes += sum(part.nbytes for part in found)
        return found

    def stamp(self) -> object:
        return _tensor.version_of(self._up), _tensor.version_of(self._down)


@dataclass(frozen=True)
class FrozenFfn:
    """Weights as nn.Linear has them: `up` (neurons, width), `down` (output width, neurons), biases or None. All must
    be frozen."""

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.up.dim() != 2 or self.down.dim() != 2 or self.up.shape[0] != self.down.shape[1]:
            raise InputError(f"masked FFN: wanted up (neurons, width) and down (output width, neurons), found "
                             f"{list(self.up.shape)} and {list(self.down.shape)}; transpose what is stored "
                             "the other way")  # fmt: skip
        for name in ("up", "down", "up_bias", "down_bias"):
            part = getattr(self, name)
            if part is not None and part.requires_grad:
                raise UnsupportedError(f"masked FFN: {name} wants a gradient, but only the input's is computed; freeze "
                                       "it with requires_grad_(False), or train this FFN without masks")  # fmt: skip

    @classmethod
    def of(cls, up: nn.Module, activation: object, down: nn.Module, gate: nn.Module | None = None) -> FrozenFfn:
        """The FFN of two plain nn.Linear and a plain ReLU. Raises UnsupportedError for what one bit a neuron and token
        is not enough for: a gate, another activation, an adapter inside a layer."""
        if gate is not None:
            raise UnsupportedError("masked FFN: a gated FFN needs more in backward than which neurons were active; "
                                   "use the layer window for it")  # fmt: skip
        if type(activation) is not nn.ReLU and activation not in (F.relu, torch.relu):
            raise UnsupportedError(f"masked FFN: wanted a plain ReLU, found {activation}: the derivative of any other "
                                   "is more than one bit; use the layer window for it")  # fmt: skip
        for name, layer in (("up", up), ("down", down)):
            if type(layer) is not nn.Linear:
                raise UnsupportedError(f"masked FFN: wanted {name} to be a plain nn.Linear, found "
                                       f"{type(layer).__name__}; give an adapter's part of the pre-activation as "
                                       "up_delta, or use the layer window")  # fmt: skip
        return cls(up.weight, down.weight, up.bias, down.bias)


def masked_ffn(
    x: Tensor, ffn: FrozenFfn, source: RowSource, *, layout: Layout = "zero_filled", up_delta: Tensor | None = None
) -> Tensor:
    """relu(x Up^T + b + up_delta) Down^T + c, whose backward reads only the rows of neurons that were active.

    Args:
        x: (..., width), of at least two dimensions.
        source: brings the same weights again in backward; `ffn`'s own are not kept.
        layout: "zero_filled": rows are put into zeros of the weights' full size, and the gradients equal those of the
            dense frozen FFN to the last bit (as long as the weights that are left out are finite).
            "compacted": the products run over active neurons only, quicker and smaller; equal but for rounding.
        up_delta: (..., neurons), an adapter's part of the pre-activation; the mask is taken after it, and it gets its
            gradient. An adapter around `down` needs the activations themselves and is not served.

    Raises InputError for shapes that do not fit, and in backward InPlaceError if the source's weights have changed, and
    UnsupportedError under create_graph.
    """
    width, neurons = ffn.up.shape[1], ffn.up.shape[0]
    if layout not in _LAYOUTS:
        raise InputError(f"masked_ffn: layout must be one of {_LAYOUTS}, found {layout!r}")
    if x.dim() < 2 or x.shape[-1] != width:
        raise InputError(f"masked_ffn: wanted x of (..., tokens, {width}), found {list(x.shape)}; unsqueeze one token")
    if up_delta is not None and up_delta.shape != (*x.shape[:-1], neurons):
        raise InputError(f"masked_ffn: wanted up_delta of {[*x.shape[:-1], neurons]}, found {list(up_delta.shape)}")
    if not torch.is_grad_enabled() or not any(part is not None and part.requires_grad for part in (x, up_delta)):
        return F.linear(_hidden(x, ffn, up_delta), ffn.down, ffn.down_bias)
    return _MaskedFfn.apply(x, up_delta, ffn, source, layout)


def _hidden(x: Tensor, ffn: FrozenFfn, up_delta: Tensor | None) -> Tensor:
    found = F.linear(x, ffn.up, ffn.up_bias)
    return (found if up_delta is None else found + up_delta).relu()


class _MaskedFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, up_delta: Tensor | None, ffn: FrozenFfn, source: RowSource, layout: Layout) -> Tensor:
        hidden = _hidden(x, ffn, up_delta)
        # As torch's own ReLU decides: a NaN lets gradients through.
        ctx.save_for_backward(pack_bits((hidden <= 0).logical_not_().reshape(-1, len(ffn.up))))
        ctx.source, ctx.stamp, ctx.layout = source, source.stamp(), layout
        ctx.neurons, ctx.is_column_major = len(ffn.up), _is_column_major(x)
        ctx.facts = [None if part is None else (part.shape, part.dtype) for part in (x, up_delta)]
        return F.linear(hidden, ffn.down, ffn.down_bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (bits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise UnsupportedError("masked FFN: its backward has no derivative; run backward without create_graph, or "
                                   "use the FFN without masks")  # fmt: skip
        if ctx.source.stamp() != ctx.stamp:
            raise InPlaceError("masked FFN: weights of the row source were changed between forward and backward; "
                               "change frozen weights only between steps")  # fmt: skip
        return *_gradients(ctx, bits, grad), None, None, None


def _gradients(ctx, bits: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of up_delta. Rows are read once, for both products."""
    ids = union_of(bits, ctx.neurons)
    flat = grad.reshape(-1, grad.shape[-1])
    up, down = (part.to(grad) for part in ctx.source.rows(ids))
    ids = ids.to(grad.device)
    mask = bits_at(bits, ids)
    if ctx.layout == "zero_filled":
        down = down.new_zeros(down.shape[1], ctx.neurons).index_copy_(1, ids, down.t())
        up = up.new_zeros(ctx.neurons, up.shape[1]).index_copy_(0, ids, up)
        mask = mask.new_zeros(len(mask), ctx.neurons).index_copy_(1, ids, mask)
        hidden = flat.mm(down).masked_fill_(mask.logical_not_(), 0)
    else:
        hidden = flat.mm(down.t()).masked_fill_(mask.logical_not_(), 0)
    found: list[Tensor | None] = [None, None]
    if ctx.needs_input_grad[0]:
        # torch's own backward multiplies in this order if the input's columns lie together.
        found[0] = up.t().mm(hidden.t()).t() if ctx.is_column_major else hidden.mm(up)
    if ctx.needs_input_grad[1]:
        whole = ctx.layout == "zero_filled"
        found[1] = hidden if whole else hidden.new_zeros(len(hidden), ctx.neurons).index_copy_(1, ids, hidden)
    return tuple(
        None if one is None else one.to(facts[1]).reshape(facts[0]) for one, facts in zip(found, ctx.facts, strict=True)
    )


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 (tokens, neurons / 8, rounded up) of bool (tokens, neurons): bit b of byte j is neuron 8 j + b."""
    tokens, neurons = mask.shape
    bits = torch.zeros(tokens, -(-neurons // 8), dtype=torch.uint8, device=mask.device)
    for bit in range(min(8, neurons)):
        part = mask[:, bit::8].to(torch.uint8)
        bits[:, : part.shape[1]] |= part << bit
    return bits


def union_of(bits: Tensor, neurons: int) -> Tensor:
    """int64 on the CPU, ascending: the neurons that any token used."""
    used = torch.stack([(bits & (1 << bit)).any(0) for bit in range(8)], dim=1)
    return used.flatten()[:neurons].nonzero().flatten().cpu()


def bits_at(bits: Tensor, ids: Tensor) -> Tensor:
    """bool (tokens, len(ids)): which of the neurons `ids` each token used."""
    return (bits.index_select(1, ids // 8) >> (ids % 8).to(torch.uint8)).bitwise_and_(1).bool()


def _is_column_major(x: Tensor) -> bool:
    flat = x.reshape(-1, x.shape[-1])
    return flat.stride() == (1, flat.shape[0])
