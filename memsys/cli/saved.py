"""Estimates what plain autograd keeps from forward to backward, without spending that memory.

Tensors that share a storage must count once. `torch.save` knows how to do that for every dtype and device, so the
kept tensors of two short pieces of the batch are saved to a sink that only counts, and the rest is a straight line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _CountingSink:
    """A file that remembers only its length."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.bytes += length
        return length

    def flush(self) -> None:
        pass


def estimate_saved_bytes(model: nn.Module, tokens: Tensor, targets: Tensor) -> int:
    """About how many bytes `model(tokens, targets)` saves for its backward, weights not counted.

    Args:
        tokens: (batch, seq); what the model saves of it must grow linearly with seq, as it does with fused attention.
        targets: of the same shape.
    """
    seq = tokens.shape[1]
    short, longer = max(1, seq // 16), max(2, seq // 8)
    low = _written_bytes(model, tokens[:, :short], targets[:, :short])
    high = _written_bytes(model, tokens[:, :longer], targets[:, :longer])
    # The weights and the file's own bytes are the same in both, and fall out.
    return (high - low) * seq // (longer - short)


def _written_bytes(model: nn.Module, tokens: Tensor, targets: Tensor) -> int:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, targets)
    sink = _CountingSink()
    torch.save(kept, sink)
    return sink.bytes
