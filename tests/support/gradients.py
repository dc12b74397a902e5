"""One scenario with and without memsys: the same numbers to the last bit, and nothing left behind.

A scenario is a function of a fresh model that returns tensors (losses, gradients, None where there is none).
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memsys
from memsys.activations.decision import FILE, HOST, RECOMPUTE

Results = Iterable[Tensor | None]
Scenario = Callable[[nn.Module], Results]

# Every tensor moves, whatever its size, to the tier of that name.
TIERS: dict[str, Any] = {"file": lambda saved: FILE, "host": lambda saved: HOST}
# What a cheap operation gives again is dropped, once that is proven; the rest moves.
DROPPED: Any = lambda saved: FILE if saved.segment is None else RECOMPUTE(saved.segment)  # noqa: E731
IDLE_WAIT_S = 10
# Saved tensors of 16 KiB and more: only whole sectors go to a file, so smaller ones would never reach it.
WIDTH = ROWS = 64


class Mixer(nn.Module):
    """A residual block with what layers commonly save: inputs, results, products, statistics, views of weights."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.up = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.gelu(self.up(x)))
        return x + self.down(h * torch.sigmoid(h))


def small_model() -> nn.Sequential:
    """Three blocks with the same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(Mixer(), Mixer(), Mixer())


def small_input(seed: int = 1, requires_grad: bool = False) -> Tensor:
    """(64, 64), the same values at every call with the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, WIDTH, generator=generator, requires_grad=requires_grad)


def gradients(model: nn.Module) -> list[Tensor | None]:
    """A copy of each parameter's gradient, None where there is none."""
    return [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


def step(model: nn.Module, *inputs: Any) -> list[Tensor | None]:
    """Loss and gradients of one step from zeroed gradients."""
    model.zero_grad()
    loss = model(*inputs).float().square().mean()
    loss.backward()
    return [loss.detach(), *gradients(model)]


def assert_same(found: Results, wanted: Results) -> None:
    """The same tensors to the last bit (a NaN equals the same NaN), None against None."""
    found, wanted = list(found), list(wanted)
    assert len(found) == len(wanted)
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert (one is None) == (other is None), f"result {place}: {one} against {other}"
        if one is not None:
            assert one.dtype == other.dtype
            same = bits_equal(one.detach(), other.detach())
            assert same, f"result {place} of shape {tuple(one.shape)} differs"


def bits_equal(one: Tensor, other: Tensor) -> bool:
    if one.is_sparse:
        return other.is_sparse and torch.equal(one.coalesce().to_dense(), other.coalesce().to_dense())
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def offloaded(model: nn.Module, spill_dir: Any, policy: Any = "all", **options: Any) -> nn.Module:
    """`model` with everything moved, down to one byte."""
    return memsys.offload(model, policy=policy, min_bytes=1, spill_dir=str(spill_dir), **options)


def assert_idle(model: nn.Module) -> None:
    """No byte is under way and no spill space is in use, soon after the last graph is gone."""
    deadline = time.monotonic() + IDLE_WAIT_S
    while True:
        stats = memsys.stats(model)
        if (stats.in_flight_bytes, stats.spill_used_bytes, stats.kept_bytes) == (0, 0, 0):
            return
        assert time.monotonic() < deadline, f"left behind: {stats}"
        time.sleep(0.01)
        gc.collect()


def compare(scenario: Scenario, spill_dir: Any, policy: Any = "all", model: nn.Module | None = None, **options: Any):
    """Runs the scenario on twins, plain and offloaded; returns the stats of the second."""
    plain = small_model() if model is None else model
    moved = offloaded(copy.deepcopy(plain), spill_dir, policy, **options)
    wanted = list(scenario(plain))
    assert_same(scenario(moved), wanted)
    assert_idle(moved)
    stats = memsys.stats(moved)
    if policy is TIERS["file"]:
        assert stats.peak_file_bytes > 0
    memsys.restore(moved)
    return stats
