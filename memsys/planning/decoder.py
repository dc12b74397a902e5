"""The operations of one decoder layer in their order: what each computes, what it saves, and what its backward reads.

GPT's list is figure 4 of "MEMO" (Zhao et al., SIGMOD 2025): 16·h elements of a token. Llama's is what transformers'
layer saves: 24.5·h for Llama 3 8B with eager kernels, 11.5·h of which can't be made again by a cheap operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memsys.planning.shapes import Kernels, ModelShape


class Kind(Enum):
    """What bounds an operation's time."""

    GEMM = "gemm"  # amount: floating-point operations of a token
    ATTENTION = "attention"  # amount: of a token and of each position it may see, before the causal half is taken off
    MEMORY = "memory"  # amount: bytes of a token that are read and written
    COLLECTIVE = "collective"  # amount: bytes of a token that are gathered or scattered over the tensor-parallel GPUs


@dataclass(frozen=True)
class Operation:
    """saves: tensors that exist from its end on; reads: saved tensors that its backward reads."""

    name: str
    kind: Kind
    amount: float
    saves: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """One saved tensor: `width` elements of a token, `element_bytes` each; made_from: by one cheap operation."""

    name: str
    width: int
    element_bytes: int
    producer: str
    made_from: tuple[str, ...] = ()

    @property
    def token_bytes(self) -> int:
        return self.width * self.element_bytes


LAYER_INPUT = "layer_input"
ATTENTION_OUTPUT = "attention_output"


@dataclass(frozen=True)
class Layer:
    """One layer of a model. `layer_input` is saved before its first operation.

    remade_count: so many of the operations, attention left out, make every saved tensor again.
    """

    operations: tuple[Operation, ...]
    tensors: tuple[Tensor, ...]

    @property
    def token_bytes(self) -> int:
        """Saved bytes of one token: the skeletal activations."""
        return sum(tensor.token_bytes for tensor in self.tensors)

    @property
    def remade_count(self) -> int:
        return 1 + max(index for index, operation in enumerate(self.operations) if operation.saves)

    @property
    def remade_operations(self) -> tuple[Operation, ...]:
        """What runs again to have every saved tensor from layer input and attention output."""
        return tuple(item for item in self.operations[: self.remade_count] if item.kind is not Kind.ATTENTION)


def layer_units(shape: ModelShape) -> float:
    """Saved elements of one token and layer in units of h, two bytes each: MEMO's 16, Llama's 24.5."""
    return layer_of(shape).token_bytes / shape.dtype_bytes / shape.hidden


def minimal_units(shape: ModelShape) -> float:
    """What is left, in the same units, when all that a cheap operation makes again is dropped: layer input, q, k, v,
    attention output, attention residual and the projections into the feed-forward network."""
    projections = (2 if shape.is_gated else 1) * shape.ffn
    return (4 * shape.hidden + 2 * shape.kv_width + projections) / shape.hidden


def layer_of(shape: ModelShape) -> Layer:
    """The layer of a shape."""
    h, kv, f, size = shape.hidden, shape.kv_width, shape.ffn, shape.dtype_bytes
    front, front_tensors = _norm(shape, LAYER_INPUT, "input_norm")
    back, back_tensors = _norm(shape, "residual", "post_norm")
    spread = Operation("gather", Kind.COLLECTIVE, h * size)
    collect = Operation("scatter", Kind.COLLECTIVE, h * size)
    add = 3 * h * size
    network, network_tensors = _feed_forward(shape)
    operations = (
        *front,
        spread,
        Operation("qkv", Kind.GEMM, 2 * h * (h + 2 * kv), ("q", "k", "v"), ("input_norm",)),
        Operation("attention", Kind.ATTENTION, 4 * h, (ATTENTION_OUTPUT,), ("q", "k", "v", ATTENTION_OUTPUT)),
        Operation("projection", Kind.GEMM, 2 * h * h, (), (ATTENTION_OUTPUT,)),
        collect,
        Operation("attention_add", Kind.MEMORY, add, ("residual",)),
        *back,
        spread,
        *network,
        Operation("down", Kind.GEMM, 2 * f * h, (), (network_tensors[-1].name,)),
        collect,
        Operation("network_add", Kind.MEMORY, add),
    )
    tensors = (
        *front_tensors,
        Tensor("q", h, size, "qkv"),
        Tensor("k", kv, size, "qkv"),
        Tensor("v", kv, size, "qkv"),
        Tensor(ATTENTION_OUTPUT, h, size, "attention"),
        *back_tensors,
        *network_tensors,
    )
    return Layer(operations, tensors)


def _norm(shape: ModelShape, source: str, target: str) -> tuple[tuple[Operation, ...], tuple[Tensor, ...]]:
    """A norm that reads `source`. Eager: what is saved of its source is a copy in fp32, under the source's name."""
    h, size = shape.hidden, shape.dtype_bytes
    producer = "layer" if source == LAYER_INPUT else "attention_add"
    if shape.kernels is Kernels.FUSED:
        norm = Operation(f"{target}_op", Kind.MEMORY, 2 * h * size, (target,), (source,))
        return (norm,), (
            Tensor(source, h, size, producer),
            Tensor(target, h, size, norm.name, (source,)),
        )
    normed = f"{target}_normed"
    cast = Operation(f"{target}_cast", Kind.MEMORY, h * (size + 4))
    norm = Operation(f"{target}_op", Kind.MEMORY, h * (4 + size), (normed,), (source,))
    scale = Operation(f"{target}_scale", Kind.MEMORY, 2 * h * size, (target,), (normed,))
    return (cast, norm, scale), (
        Tensor(source, h, 4, cast.name if source != LAYER_INPUT else producer),
        Tensor(normed, h, size, norm.name, (source,)),
        Tensor(target, h, size, scale.name, (normed,)),
    )


def _feed_forward(shape: ModelShape) -> tuple[tuple[Operation, ...], tuple[Tensor, ...]]:
    """What precedes the last projection, which reads the last tensor."""
    h, f, size = shape.hidden, shape.ffn, shape.dtype_bytes
    if not shape.is_gated:
        up = Operation("up", Kind.GEMM, 2 * h * f, ("up_out",), ("post_norm",))
        gelu = Operation("gelu", Kind.MEMORY, 2 * f * size, ("gelu_out",), ("up_out",))
        return (up, gelu), (
            Tensor("up_out", f, size, "up"),
            Tensor("gelu_out", f, size, "gelu", ("up_out",)),
        )
    up = Operation("gate_up", Kind.GEMM, 4 * h * f, ("gate_out", "up_out"), ("post_norm",))
    factors = (Tensor("gate_out", f, size, "gate_up"), Tensor("up_out", f, size, "gate_up"))
    if shape.kernels is Kernels.FUSED:
        product = Operation("swiglu", Kind.MEMORY, 3 * f * size, ("product",), ("gate_out", "up_out"))
        return (up, product), (*factors, Tensor("product", f, size, "swiglu", ("gate_out", "up_out")))
    silu = Operation("silu", Kind.MEMORY, 2 * f * size, ("silu_out",), ("gate_out",))
    product = Operation("product_op", Kind.MEMORY, 3 * f * size, ("product",), ("silu_out", "up_out"))
    return (up, silu, product), (
        *factors,
        Tensor("silu_out", f, size, "silu", ("gate_out",)),
        Tensor("product", f, size, "product_op", ("silu_out", "up_out")),
    )
