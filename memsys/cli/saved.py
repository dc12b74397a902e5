"""Estimates what plain autograd keeps from forward to backward, without spending that memory.

Tensors that share a storage must count once. `torch.save` knows how to do that for every dtype and device, so the
kept tensors of two short pieces of the batch are saved to a sink that only counts, and the rest is a straight line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Long enough that each tensor is larger than what torch.save writes about it; a long context's own share would take
# minutes of attention.
_LONGEST_PIECE = 4096


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


def estimate_run_bytes(run: Any) -> int:
    """About how many bytes a step of the run saves in this process, told by a twin of its model: what the model itself
    saves may be weights that are gathered from other processes and gone when it is looked at."""
    from memsys.cli.gpt import GPT, GPTShape

    setting, parameter = run.setting, next(run.model.parameters())
    shape = GPTShape(layers=setting.layers, width=setting.width, seq=min(setting.seq, _LONGEST_PIECE))
    with torch.random.fork_rng(devices=[]):
        twin = GPT(shape).to(device=run.device, dtype=parameter.dtype)
    return estimate_saved_bytes(twin, *run.batch(0))


def estimate_saved_bytes(model: nn.Module, tokens: Tensor, targets: Tensor) -> int:
    """About how many bytes `model(tokens, targets)` saves for its backward, weights not counted.

    Args:
        tokens: (batch, seq); what the model saves of it must grow linearly with seq, as it does with fused attention.
        targets: of the same shape.
    """
    seq = tokens.shape[1]
    longer = max(2, min(seq // 8, _LONGEST_PIECE))
    short = longer // 2
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
