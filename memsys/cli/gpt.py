"""The reference model of the command line and the benchmarks: a plain byte-level GPT, as a user would write it.

It knows nothing of memsys. The loss is computed inside `forward`, because `memsys.offload(model)` sees what the
model's forward saves, and a loss outside would not be offloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
VOCABULARY = 256  # bytes


class ShapeError(ValueError):
    """Sizes that make no GPT."""


@dataclass(frozen=True)
class GPTShape:
    """Sizes of a GPT: `layers` blocks of `width` (a multiple of 64), sequences of at most `seq` bytes."""

    layers: int = 12
    width: int = 512
    seq: int = 2048
    tied_head: bool = False

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH:
            raise ShapeError(f"width {self.width} is not a multiple of {HEAD_WIDTH}, the width of a head; try 512")


class Attention(nn.Module):
    """Causal self-attention with one fused projection to queries, keys and values: (batch, seq, width) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        qkv = self.qkv(x).view(batch, seq, 3, self.heads, HEAD_WIDTH)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, seq, 64)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, seq, width))


class Block(nn.Module):
    """One pre-norm layer: attention, then an MLP of four times the width, each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Bytes in, the next byte out (Radford et al., 2019: pre-norm, GELU, learned positions)."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.shape = shape
        self.bytes = nn.Embedding(VOCABULARY, shape.width)
        self.positions = nn.Embedding(shape.seq, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        if shape.tied_head:
            self.head.weight = self.bytes.weight
        self.apply(_initialise)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mean cross-entropy in nats (fp32) if `targets` are given, else logits (batch, seq, 256).

        Args:
            tokens: int64, (batch, seq), values in [0, 256), seq at most `shape.seq`.
            targets: the byte after each token, of the same shape.
        """
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().view(-1, VOCABULARY), targets.reshape(-1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def parameter_count(model: nn.Module) -> int:
    """Parameters of `model`, a tied one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
