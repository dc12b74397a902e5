"""Measures this machine for a simulation: products, attention, memory and links, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from memsys.budget import available_host_bytes, default_spill_dir
from memsys.planning.gpus import MACHINES
from memsys.planning.hardware import Figure, Machine, exactly
from memsys.report import links

_MEASURED = "measured on this machine"
_ROUNDS = 4  # the first warms up
# The sizes keep a GPU busy for milliseconds, and a processor for tenths of a second.
_GPU_SIZES = {"width": 8192, "seq": 8192, "heads": 32, "elements": 1 << 28}
_CPU_SIZES = {"width": 1024, "seq": 1024, "heads": 8, "elements": 1 << 22}
_HEAD = 128


def measure_machine(spill_dir: str | None = None) -> Machine:
    """This machine: its first GPU in bf16, or its processor in fp32. Needs torch.

    Raises:
        OSError: the spill folder is missing, read-only or full.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    device, sizes = ("cuda", _GPU_SIZES) if has_gpu else ("cpu", _CPU_SIZES)
    dtype = torch.bfloat16 if has_gpu else torch.float32
    gemm, (forward, backward) = _gemm_rate(device, dtype, sizes), _attention_rates(device, dtype, sizes)
    memory_rate = _memory_rate(device, dtype, sizes)
    file = links.measure_file_rates(spill_dir or default_spill_dir())
    in_rate, out_rate = links.measure_gpu_rates() if has_gpu else (memory_rate, memory_rate)
    name = torch.cuda.get_device_name(0) if has_gpu else "this processor"
    total = torch.cuda.get_device_properties(0).total_memory if has_gpu else available_host_bytes()
    peak, source = _peak_flops(name, max(gemm, forward, backward))
    return Machine(
        name=name,
        peak_flops=exactly(peak, source),
        memory_bytes=_measured(total),
        memory_rate=_measured(memory_rate),
        memory_share=_measured(1.0),
        gemm_share=_measured(gemm / peak),
        attention_forward_share=_measured(forward / peak),
        attention_backward_share=_measured(backward / peak),
        out_rate=_measured(out_rate),
        in_rate=_measured(in_rate),
        both_share=exactly(1.44, "assumed as on other machines: both directions at once were not measured", False),
        collective_rate=exactly(memory_rate, "not measured: one device is simulated", False),
        file_out_rate=_measured(file.write_rate),
        file_in_rate=_measured(file.read_rate),
        is_host_memory=not has_gpu,
    )


def _measured(value: float) -> Figure:
    return exactly(value, _MEASURED)


def _peak_flops(name: str, achieved: float) -> tuple[float, str]:
    """The datasheet's peak of a GPU known by name; else what was achieved, so that an MFU is a share of that."""
    squeezed = name.lower().replace(" ", "")
    for known, machine in MACHINES.items():
        if known in squeezed and machine.peak_flops.value >= achieved:
            return machine.peak_flops.value, machine.peak_flops.source
    return achieved, f"{_MEASURED}: the best of products and attention, no datasheet"


def _best_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    import torch

    best = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def _gemm_rate(device: str, dtype: object, sizes: dict[str, int]) -> float:
    import torch

    width = sizes["width"]
    one = torch.randn(width, width, device=device, dtype=dtype)
    other = torch.randn(width, width, device=device, dtype=dtype)
    return 2 * width**3 / _best_s(lambda: one @ other)


def _attention_rates(device: str, dtype: object, sizes: dict[str, int]) -> tuple[float, float]:
    """Causal operations a second, forward and backward: 4·s²·h / 2, and 5/2 of it."""
    import torch

    seq, heads = sizes["seq"], sizes["heads"]
    shape = (1, heads, seq, _HEAD)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def forward() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    out, flops = forward(), 2 * seq**2 * heads * _HEAD
    gradient = torch.randn_like(out)
    forward_s = _best_s(forward)
    backward_s = _best_s(lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True))
    return flops / forward_s, 2.5 * flops / backward_s


def _memory_rate(device: str, dtype: object, sizes: dict[str, int]) -> float:
    """Bytes a second that an elementwise operation reads and writes."""
    import torch

    one = torch.ones(sizes["elements"], device=device, dtype=dtype)
    other = torch.empty_like(one)
    return 2 * one.numel() * one.element_size() / _best_s(lambda: torch.add(one, 1.0, out=other))
