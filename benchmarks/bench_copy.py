"""How fast do bytes leave for host memory or a file and come back, as a share of what the link can carry?

Swaps blocks out and in through the store alone, without autograd: what is lost here no policy can win back.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import shown
import torch

from memsys import _C
from memsys.report import links

_SMOKE_BYTES, _SMOKE_COUNT = 1 << 20, 4
_BLOCK_BYTES, _BLOCK_COUNT = 16 << 20, 16
_ROUNDS = 5


class Swaps:
    """Blocks of one device that go out to one tier and come back; keeps the seconds of each direction."""

    def __init__(self, kind: _C.DeviceKind, folder: Path, block_bytes: int, block_count: int) -> None:
        self.is_cuda = kind == _C.DeviceKind.cuda
        self.runtime = _C.Runtime(kind)
        budgets = dict.fromkeys(("device_budget_bytes", "host_budget_bytes", "disk_budget_bytes"), -1)
        self.store = _C.TensorStore(runtime=self.runtime, spill_folder=str(folder), **budgets)
        device = "cuda" if self.is_cuda else "cpu"
        self.sources = [
            torch.randint(256, (block_bytes,), dtype=torch.uint8, device=device) for _ in range(block_count)
        ]
        self.targets = [torch.zeros_like(source) for source in self.sources]
        self.moved_bytes = block_bytes * block_count
        self.out_s: list[float] = []
        self.in_s: list[float] = []

    def round_trip(self, tier: _C.Tier) -> None:
        """Every block out, then every block in; `out_s` and `in_s` each get one entry."""
        stream = torch.cuda.current_stream().cuda_stream if self.is_cuda else 0
        started = time.perf_counter()
        blocks = [self.store.swap_out(source.data_ptr(), source.numel(), stream, tier) for source in self.sources]
        self._finish()
        turned = time.perf_counter()
        pairs = zip(blocks, self.targets, strict=True)
        arrivals = [self.store.swap_in(block, target.data_ptr(), stream) for block, target in pairs]
        for arrival in arrivals:
            self.store.arrive(arrival, stream)
        self._finish()
        self.in_s.append(time.perf_counter() - turned)
        self.out_s.append(turned - started)

    def _finish(self) -> None:
        self.store.drain()
        if self.is_cuda:
            torch.cuda.synchronize()


def _measure(benchmark, capsys, swaps: Swaps, tier: _C.Tier, peaks: tuple[float, float], link: str) -> None:
    rounds = _ROUNDS if benchmark.enabled else 1
    benchmark.pedantic(swaps.round_trip, args=(tier,), rounds=rounds, iterations=1, warmup_rounds=1)
    pairs = zip(swaps.sources, swaps.targets, strict=True)
    assert all(torch.equal(source, target) for source, target in pairs)
    lines = [
        shown.share_of_peak(f"{link} {way}", swaps.moved_bytes, seconds, peak, f"measured {link} peak")
        for way, seconds, peak in (("out", swaps.out_s, peaks[0]), ("in", swaps.in_s, peaks[1]))
    ]
    benchmark.extra_info["lines"] = lines
    shown.show(capsys, *lines, *shown.caution(benchmark))


def _sizes(benchmark) -> tuple[int, int]:
    return (_BLOCK_BYTES, _BLOCK_COUNT) if benchmark.enabled else (_SMOKE_BYTES, _SMOKE_COUNT)


def _file_peaks(folder: Path, moved_bytes: int) -> tuple[float, float]:
    """Best of three: a shared disk is slow by chance, and a peak must not be."""
    file_bytes = max(moved_bytes, links.IN_FLIGHT * links.BLOCK_BYTES)
    rates = [links.measure_file_rates(folder, file_bytes) for _ in range(3)]
    return max(rate.write_rate for rate in rates), max(rate.read_rate for rate in rates)


def test_cpu_to_file(benchmark, capsys, tmp_path: Path) -> None:
    """RAM to a spill file in the test's folder and back, with checksums."""
    swaps = Swaps(_C.DeviceKind.host, tmp_path, *_sizes(benchmark))
    _measure(benchmark, capsys, swaps, _C.Tier.file, _file_peaks(tmp_path, swaps.moved_bytes), "file")


def test_cpu_to_host_memory(benchmark, capsys, tmp_path: Path) -> None:
    """RAM to the store's own host memory and back."""
    rate = links.measure_copy_rate()
    swaps = Swaps(_C.DeviceKind.host, tmp_path, *_sizes(benchmark))
    _measure(benchmark, capsys, swaps, _C.Tier.pageable, (rate, rate), "memory copy")


@pytest.mark.gpu
def test_gpu_to_pinned_memory(benchmark, capsys, tmp_path: Path) -> None:
    """Device memory to pinned host memory and back."""
    to_gpu, from_gpu = links.measure_gpu_rates()
    swaps = Swaps(_C.DeviceKind.cuda, tmp_path, *_sizes(benchmark))
    _measure(benchmark, capsys, swaps, _C.Tier.pinned, (from_gpu, to_gpu), "GPU link")


@pytest.mark.gpu
def test_gpu_to_file(benchmark, capsys, tmp_path: Path) -> None:
    """Device memory through pinned host memory to a spill file and back."""
    swaps = Swaps(_C.DeviceKind.cuda, tmp_path, *_sizes(benchmark))
    _measure(benchmark, capsys, swaps, _C.Tier.file, _file_peaks(tmp_path, swaps.moved_bytes), "file")
