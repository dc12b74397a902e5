"""How long the operations of a layer take at given rates: one number divided by another, nothing overlapped.

A product takes its operations over the achieved rate, whatever its size; what is bound by memory its bytes over the
rate of memory; a collective (n-1)/n of its bytes over the bus bandwidth. Backward: twice the operations of a product,
5/2 of attention's (flash attention computes the scores again: 5 products for 2, FlashAttention-2, section 4.1), twice
the bytes, the same collectives.
"""

from __future__ import annotations

from dataclasses import dataclass

from memsys.planning.decoder import Kind, Layer, Operation, layer_of
from memsys.planning.hardware import Rates
from memsys.planning.shapes import ModelShape

FLASH_BACKWARD = 2.5
# Adam with parameters and gradients in bf16: reads gradient, master copy and two moments in fp32, writes all but the
# gradient: 2 + 12 + 12 + 2 bytes of a parameter.
_UPDATE_BYTES = 28


@dataclass(frozen=True)
class Load:
    """The part of one GPU: `tokens` of `batch` sequences of `seq` positions, over `parallel` tensor-parallel GPUs."""

    seq: int
    batch: int = 1
    parallel: int = 1

    @property
    def tokens(self) -> int:
        return self.seq * self.batch


@dataclass(frozen=True)
class LayerTimes:
    """Microseconds of one layer on one GPU. remake_us: everything but attention up to the last saved tensor."""

    forward_us: float
    backward_us: float
    attention_us: float
    remake_us: float


class ComputeModel:
    """Times of one model's operations under one load at one machine's rates."""

    def __init__(self, shape: ModelShape, rates: Rates, load: Load) -> None:
        self.shape = shape
        self.rates = rates
        self.load = load
        self.layer: Layer = layer_of(shape)

    def forward_us(self, operation: Operation) -> float:
        """An operation on this GPU's part of the load."""
        part = operation.amount * self.load.tokens / self.load.parallel * 1e6
        if operation.kind is Kind.GEMM:
            return part / self.rates.gemm_flops
        if operation.kind is Kind.ATTENTION:
            return part * self.load.seq / 2 / self.rates.attention_forward_flops  # a token sees half of them on average
        if operation.kind is Kind.MEMORY:
            return part / self.rates.memory_rate
        return part * (self.load.parallel - 1) / self.rates.collective_rate

    def backward_us(self, operation: Operation) -> float:
        """The gradients of an operation."""
        forward = self.forward_us(operation)
        if operation.kind is Kind.ATTENTION:
            return FLASH_BACKWARD * forward * self.rates.attention_forward_flops / self.rates.attention_backward_flops
        return forward if operation.kind is Kind.COLLECTIVE else 2 * forward

    def layer_times(self) -> LayerTimes:
        operations = self.layer.operations
        return LayerTimes(
            forward_us=sum(map(self.forward_us, operations)),
            backward_us=sum(map(self.backward_us, operations)),
            attention_us=sum(self.forward_us(item) for item in operations if item.kind is Kind.ATTENTION),
            remake_us=sum(map(self.forward_us, self.layer.remade_operations)),
        )

    def head_operations(self) -> tuple[Operation, ...]:
        """Final norm, classifier and loss. The loss goes through the vocabulary in chunks, as long sequences need it:
        no probabilities of the whole sequence are saved."""
        h, size, vocab = self.shape.hidden, self.shape.dtype_bytes, self.shape.vocab
        return (
            Operation("final_norm_op", Kind.MEMORY, 2 * h * size, ("final_norm",), ("final_input",)),
            Operation("classifier", Kind.GEMM, 2 * h * vocab, (), ("final_norm",)),
            Operation("loss", Kind.MEMORY, 2 * vocab * size),
        )

    def update_us(self, gpus: int) -> float:
        """The optimizer on one GPU's part of the parameters: bound by memory."""
        return self.shape.parameters / gpus * _UPDATE_BYTES / self.rates.memory_rate * 1e6
