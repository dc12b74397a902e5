"""Decoder blocks with the sizes of Llama 3 8B, for the GPU grid: what a long sequence saves, without a vocabulary.

Sizes from Dubey et al., 2024, table 3: width 4096, 32 heads, 8 key-value heads, feed-forward width 14336.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of one block; `seq` is the longest sequence."""

    width: int = 4096
    heads: int = 32
    key_value_heads: int = 8
    hidden: int = 14336
    seq: int = 65536

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def rotary_table(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """(cosine, sine), each (seq, head_width), of rotary positions (Su et al., 2021) with base 500000."""
    exponents = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.outer(torch.arange(shape.seq), 500000.0**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns (batch, heads, seq, head_width) by its positions."""
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-high, low), dim=-1) * sine


class Block(nn.Module):
    """Grouped-query attention and a gated feed-forward, pre-norm: (batch, seq, width) to the same."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        key_value_width = shape.key_value_heads * shape.head_width
        self.attention_norm = nn.RMSNorm(shape.width)
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, key_value_width, bias=False)
        self.value = nn.Linear(shape.width, key_value_width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.feed_norm = nn.RMSNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x), cosine, sine)
        normed = self.feed_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def attend(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, seq, width = x.shape
        split = (batch, seq, -1, self.shape.head_width)
        query, key, value = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, seq, width))


class BlockStack(nn.Module):
    """`layers` blocks; forward returns a scalar, so that everything saved is saved inside it."""

    def __init__(self, shape: LlamaShape, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(layers))
        cosine, sine = rotary_table(shape)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        seq = x.shape[1]
        for block in self.blocks:
            x = block(x, self.cosine[:seq], self.sine[:seq])
        return x.float().square().mean()
