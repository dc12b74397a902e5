"""The grid of bench_swap on a GPU: Llama-8B-shaped blocks, sequences of 8K to 64K, four ways to train, in turn.

One process serves all modes, unlike on the CPU: the peak is read from torch's allocator, which can be reset.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
import shown
import torch
from llama import BlockStack, LlamaShape
from torch.utils.checkpoint import checkpoint

import memsys
from memsys.budget import format_bytes
from memsys.report import links

_LAYERS = 4
_MODES = ("plain", "memsys", "checkpoint", "save_on_cpu")
_WARM_UP, _STEPS = 2, 3  # memsys learns the order in the first
_SMOKE_DIVISOR = 32
_SEQUENCES = [8 << 10, 16 << 10, 32 << 10, 64 << 10]


@contextlib.contextmanager
def mode_of(mode: str, model: BlockStack) -> Iterator[None]:
    """The model trains in `mode` inside, and as before afterwards."""
    with contextlib.ExitStack() as stack:
        if mode == "memsys":
            memsys.offload(model, policy="all")
            stack.callback(memsys.restore, model)
        elif mode == "save_on_cpu":
            stack.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=True))
        elif mode == "checkpoint":
            for block in model.blocks:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
                stack.callback(delattr, block, "forward")
        yield


def measure(mode: str, model: BlockStack, x: torch.Tensor) -> dict[str, Any]:
    """Seconds of each timed step, peak over what was allocated before, the loss, and bytes moved in a step."""
    model.zero_grad(set_to_none=False)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    # What save_on_cpu pinned stays pinned in torch's cache, and would leave the next mode too little.
    getattr(torch.accelerator, "empty_host_cache", lambda: None)()
    baseline_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    with mode_of(mode, model):
        for step in range(_WARM_UP + _STEPS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            loss = model(x)
            loss.backward()
            torch.cuda.synchronize()
            if step >= _WARM_UP:
                seconds.append(time.perf_counter() - started)
        moved = memsys.stats(model).out_bytes // (_WARM_UP + _STEPS) if mode == "memsys" else 0
    growth_bytes = torch.cuda.max_memory_allocated() - baseline_bytes
    return {"step_s": seconds, "growth_bytes": growth_bytes, "loss": loss.item(), "out_bytes": moved}


def lines_of(results: dict[str, dict[str, Any]]) -> list[str]:
    """One line per mode against plain, where plain fits; bytes out against the measured peak of the link."""
    _, from_gpu = links.measure_gpu_rates()
    plain = results.get("plain")
    lines = []
    for mode, result in results.items():
        line = f"{mode}: {statistics.median(result['step_s']):.3f} s, growth {format_bytes(result['growth_bytes'])}"
        if plain is not None:
            ratio = statistics.median(result["step_s"]) / statistics.median(plain["step_s"])
            line += f", step / plain {ratio:.3f}, growth / plain {result['growth_bytes'] / plain['growth_bytes']:.0%}"
        lines.append(line)
    if "memsys" in results:
        moved, seconds = results["memsys"]["out_bytes"], results["memsys"]["step_s"]
        lines.append(shown.share_of_peak("memsys out, over the whole step", moved, seconds, from_gpu, "from the GPU"))
    return lines


@pytest.mark.gpu
@pytest.mark.parametrize("seq", _SEQUENCES)
def test_swap_gpu(benchmark, capsys, seq: int) -> None:
    """All modes at one length; a mode that does not fit the GPU is left out and named."""
    if not benchmark.enabled:
        seq //= _SMOKE_DIVISOR
    torch.manual_seed(0)
    model = BlockStack(LlamaShape(), _LAYERS).to(device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, seq, LlamaShape().width, device="cuda", dtype=torch.bfloat16)
    model(x[:, :16]).backward()  # makes the gradients, so that no mode pays for them

    def all_modes() -> tuple[dict[str, dict[str, Any]], list[str]]:
        results, unfit = {}, []
        for mode in _MODES:
            try:
                results[mode] = measure(mode, model, x)
            except torch.OutOfMemoryError:
                unfit.append(mode)
        return results, unfit

    results, unfit = benchmark.pedantic(all_modes, rounds=1, iterations=1)
    benchmark.extra_info.update(seq=seq, layers=_LAYERS, unfit=unfit, modes=results, gpu=torch.cuda.get_device_name())
    shown.show(capsys, f"seq {seq}", *lines_of(results), *(f"{mode}: does not fit this GPU" for mode in unfit))
    assert "memsys" in results
    assert results["memsys"]["out_bytes"] > 0
    assert len({result["loss"] for result in results.values()}) == 1
