"""Shapes of models by name, and what one has of parameters, operations and saved bytes: the input of a simulation.

Counts are of one model, not of one GPU's share. GPT shapes are table 2 of "MEMO" (Zhao et al., SIGMOD 2025); the others
are the published configurations of the models they are named after.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memsys.errors import InputError


class Kernels(Enum):
    """What a layer's kernels save for backward."""

    FUSED = "fused"  # a norm saves its input and its output, a gated product its two factors and itself
    EAGER = "eager"  # as transformers does: a norm saves a copy in fp32, the normed rows and their scaled product


@dataclass(frozen=True)
class ModelShape:
    """A decoder: `layers` equal layers of attention and a feed-forward network, then a classifier over `vocab`.

    is_gated: three projections in the feed-forward network (Llama) instead of two (GPT); is_tied: embedding and
    classifier are one matrix; dtype_bytes: of an element of activations and parameters.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    is_gated: bool = False
    is_tied: bool = False
    kernels: Kernels = Kernels.FUSED
    dtype_bytes: int = 2

    def __post_init__(self) -> None:
        counts = (self.layers, self.hidden, self.ffn, self.heads, self.kv_heads, self.vocab, self.dtype_bytes)
        if min(counts) < 1 or self.hidden % self.heads or self.heads % self.kv_heads:
            raise InputError(f"model shape {self.name!r}: wanted positive counts, hidden a multiple of heads and heads "
                             f"of kv_heads, found {self}; correct it")  # fmt: skip

    @property
    def kv_width(self) -> int:
        """Elements of a key (or a value) of one token."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def layer_parameters(self) -> int:
        """Elements of one layer's matrices; norms and biases are left out, as in every count of operations."""
        attention = self.hidden * (2 * self.hidden + 2 * self.kv_width)
        return attention + (3 if self.is_gated else 2) * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """Elements of all matrices, with embedding and classifier."""
        return self.layers * self.layer_parameters + (1 if self.is_tied else 2) * self.vocab * self.hidden

    @property
    def matrix_parameters(self) -> int:
        """Elements of the matrices that every token is multiplied by: all but the embedding."""
        return self.layers * self.layer_parameters + self.vocab * self.hidden

    def model_flops(self, seq: int, batch: int = 1) -> float:
        """Operations of one step by the causal convention: 6 for each parameter and token, 6·h·s for each token and
        layer in attention (half of the square); what is computed again, by flash attention too, is not counted."""
        return batch * seq * (6.0 * self.matrix_parameters + 6.0 * self.layers * self.hidden * seq)


_GPT = {"kernels": Kernels.FUSED, "is_tied": True, "vocab": 50257}
_LLAMA3 = {"kv_heads": 8, "vocab": 128256, "is_gated": True}
_QWEN3 = {"kv_heads": 8, "vocab": 151936, "is_gated": True}
_SHAPES = (
    ModelShape("gpt-7b", 32, 4096, 16384, 32, 32, **_GPT),
    ModelShape("gpt-13b", 40, 5120, 20480, 40, 40, **_GPT),
    ModelShape("gpt-30b", 48, 7168, 28672, 56, 56, **_GPT),
    ModelShape("gpt-65b", 80, 8192, 32768, 64, 64, **_GPT),
    ModelShape("llama3-8b", 32, 4096, 14336, 32, kernels=Kernels.EAGER, **_LLAMA3),
    ModelShape("llama3-8b-fused", 32, 4096, 14336, 32, **_LLAMA3),
    ModelShape("llama3-70b", 80, 8192, 28672, 64, kernels=Kernels.EAGER, **_LLAMA3),
    ModelShape("qwen3-8b", 36, 4096, 12288, 32, kernels=Kernels.EAGER, **_QWEN3),
    ModelShape("qwen3-8b-fused", 36, 4096, 12288, 32, **_QWEN3),
    ModelShape("gpt-train", 6, 512, 2048, 8, 8, vocab=256),  # the GPT of `memsys train`
    ModelShape("gpt-tiny", 4, 256, 1024, 4, 4, vocab=256, is_tied=True),
    ModelShape("llama-tiny", 4, 256, 704, 4, 2, vocab=256, is_gated=True),
)
SHAPES = {shape.name: shape for shape in _SHAPES}


def find_shape(name: str | ModelShape) -> ModelShape:
    """The shape of that name (any case), or the shape itself. Raises InputError, which lists the names."""
    if isinstance(name, ModelShape):
        return name
    found = SHAPES.get(name.lower())
    if found is None:
        raise InputError(f"model shape {name!r}: no such name; known are {', '.join(SHAPES)}, or make a ModelShape")
    return found
