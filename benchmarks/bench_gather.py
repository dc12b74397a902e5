"""How fast do rows come out of a table in host memory, by memsys and by the ways torch and NumPy have?

Width x base offset {0, 16, 64} x skew (uniform, power law) x order (as drawn, sorted), on the CPU. Every call gets an
index of its own, so that no rows are left in the caches from the call before; the ways take turns within a round, in
another order each round, and a figure is a median. As a script it measures in earnest:

    python benchmarks/bench_gather.py --rounds 15 --json gather.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shown
import torch

import memsys
from memsys import _C
from memsys.report import links

_TABLE_BYTES = 3 << 30
_OUTPUT_BYTES = 1 << 30
_ROWS, _COUNT = 2_000_000, 200_000
_ELEMENTS = (64, 100, 128, 256, 512)  # the widths of the headline, in fp32
_EDGE_ELEMENTS = (4, 8, 16, 32, 1024, 2048, 4096, 16384)


class Case(NamedTuple):
    """A table and how it is read."""

    elements: int
    base_offset_bytes: int = 64  # of the table that torch reads; memsys's own is aligned
    skew: str = "uniform"
    is_sorted: bool = False

    def sizes(self, scale: float) -> tuple[int, int]:
        """Rows of the table and of one gather."""
        row_bytes = 4 * self.elements
        rows = int(scale * min(_ROWS, _TABLE_BYTES // row_bytes))
        return max(rows, 16), max(int(scale * min(_COUNT, _OUTPUT_BYTES // row_bytes)), 16)


def plain_table(rows: int, elements: int, base_offset_bytes: int) -> torch.Tensor:
    """A tensor as torch.empty lays it, but at the wanted offset from a 128-byte line."""
    space = torch.empty(rows * elements + 64)
    shift = (base_offset_bytes - space.data_ptr()) % 128 // 4
    table = space[shift : shift + rows * elements].view(rows, elements)
    return table.copy_(torch.arange(elements, dtype=torch.float32).expand_as(table))


def make_index(case: Case, rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    if case.skew == "uniform":
        index = torch.randint(rows, (count,), generator=generator)
    else:  # ranks of a Zipf law of exponent 1 over shuffled rows, by its inverse distribution
        ranks = torch.exp(torch.rand(count, generator=generator) * math.log(rows)).long().clamp_(1, rows) - 1
        index = (ranks * 2_654_435_761) % rows
    return index.sort().values if case.is_sorted else index


def plain_loop(row_bytes: int) -> Callable | None:
    """The loop of plain_gather.cpp for one width, compiled for this CPU; None without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    source = Path(__file__).with_name("plain_gather.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain_gather.so"
        flags = ["-std=c++20", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", f"-DROW_BYTES={row_bytes}"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).plain_gather
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return function


def ways(case: Case, rows: int, count: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """Each way to fetch the rows of an index. `out` ways write to memory touched before."""
    x = plain_table(rows, case.elements, case.base_offset_bytes)
    table = memsys.HostTable(x)
    out = torch.zeros(count, case.elements)
    array, target = x.numpy(), out.numpy()
    plain = plain_loop(4 * case.elements)

    def loop(index: torch.Tensor) -> None:
        plain(table.tensor.data_ptr(), index.data_ptr(), index.numel(), out.data_ptr())

    return ({} if plain is None else {"plain C++ loop": loop}) | {
        "memsys gather(out=)": lambda index: table.gather(index, out=out),
        "memsys table[index]": lambda index: table[index],
        "index_select(out=)": lambda index: torch.index_select(x, 0, index, out=out),
        "index_select": lambda index: torch.index_select(x, 0, index),
        "x[index]": lambda index: x[index],
        "F.embedding": lambda index: torch.nn.functional.embedding(index, x),
        "np.take(out=)": lambda index: np.take(array, index.numpy(), axis=0, out=target, mode="clip"),
    }


def measure(case: Case, rounds: int, scale: float = 1.0, names: tuple[str, ...] = ()) -> dict[str, float]:
    """Median seconds of each way; the first round is not counted."""
    rows, count = case.sizes(scale)
    chosen = {name: way for name, way in ways(case, rows, count).items() if not names or name in names}
    generator = torch.Generator().manual_seed(0)
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds + 1):
        for name in order.sample(sorted(chosen), len(chosen)):
            index = make_index(case, rows, count, generator)
            begin = time.perf_counter()
            result = chosen[name](index)
            seconds[name].append(time.perf_counter() - begin)
            del result
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


def summary(case: Case, seconds: dict[str, float], scale: float, peak_rate: float) -> dict[str, object]:
    """Rates, their shares of the peak of a memory copy, and the ratios that are promised."""
    moved = case.sizes(scale)[1] * case.elements * 4
    rates = {name: moved / time_ for name, time_ in seconds.items()}
    of = {
        "out_ratio": ("index_select(out=)", "memsys gather(out=)"),
        "plain_loop_ratio": ("plain C++ loop", "memsys gather(out=)"),
        "pooled_ratio": ("index_select", "memsys table[index]"),
        "pooled_ratio_to_indexing": ("x[index]", "memsys table[index]"),
    }
    ratios = {
        name: seconds[other] / seconds[ours]
        for name, (other, ours) in of.items()
        if other in seconds and ours in seconds
    }
    requests = _C.count_requests(4 * case.elements, 4 * case.elements, 0, case.sizes(scale)[0], 2000, 0)
    return {
        **case._asdict(),
        "row_bytes": 4 * case.elements,
        "GB_per_s": {name: rate / 1e9 for name, rate in rates.items()},
        "share_of_copy_peak": {name: rate / peak_rate for name, rate in rates.items()},
        "gpu_requests_per_row_model": requests,
        **ratios,
    }


def cases(is_full: bool) -> list[Case]:
    """The headline's widths first, then the edges, then offsets, skew and order at some widths."""
    listed = [Case(elements) for elements in (*_ELEMENTS, *_EDGE_ELEMENTS)]
    if is_full:
        for elements in (64, 100, 128, 256, 602):
            listed += [Case(elements, offset) for offset in (0, 16)]
            listed += [Case(elements, 64, "power law"), Case(elements, 64, "uniform", True)]
    return listed


def report(results: list[dict[str, object]]) -> dict[str, float]:
    """The headline figures."""
    names = ("out_ratio", "plain_loop_ratio", "pooled_ratio", "pooled_ratio_to_indexing")
    figures = {
        f"geometric_mean_{name}": statistics.geometric_mean(
            [one[name] for one in results[: len(_ELEMENTS)] if name in one] or [math.nan]
        )
        for name in names
    } | {
        "least_out_ratio": min(one["out_ratio"] for one in results),
    }
    by_case = {(one["elements"], one["base_offset_bytes"], one["skew"], one["is_sorted"]): one for one in results}
    gains = []
    for (elements, offset, skew, is_sorted), one in by_case.items():
        unsorted = by_case.get((elements, offset, skew, False))
        if is_sorted and unsorted is not None:
            gains.append(one["GB_per_s"]["memsys gather(out=)"] / unsorted["GB_per_s"]["memsys gather(out=)"])
    if gains:
        figures["geometric_mean_gain_of_sorting"] = statistics.geometric_mean(gains)
    return figures


def test_gather(benchmark, capsys) -> None:
    """One small case, once; at full size the headline's widths."""
    scale, rounds = (1.0, 5) if benchmark.enabled else (0.001, 1)
    case = Case(128)
    seconds = benchmark.pedantic(lambda: measure(case, rounds, scale), rounds=1, iterations=1)
    one = summary(case, seconds, scale, links.measure_copy_rate())
    benchmark.extra_info["summary"] = one
    lines = [f"{name}: {rate:.2f} GB/s" for name, rate in one["GB_per_s"].items()]
    shown.show(capsys, *lines, f"out ratio {one['out_ratio']:.2f}", *shown.caution(benchmark))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--full", action="store_true", help="offsets, skew and order too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="writes every figure there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peak_rate, results = links.measure_copy_rate(), []
    for case in cases(arguments.full):
        results.append(summary(case, measure(case, arguments.rounds), 1.0, peak_rate))
        one = results[-1]
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in one["GB_per_s"].items())
        ratios = ", ".join(f"{name} {one[name]:.2f}" for name in one if name.endswith(("ratio", "indexing")))
        print(f"{one['row_bytes']:6d} B {case.base_offset_bytes:2d} {case.skew} sorted={case.is_sorted}: {ratios} | {rates} GB/s", flush=True)  # fmt: skip # noqa: E501
    figures = report(results)
    print(figures)
    if arguments.json:
        saved = {"torch": torch.__version__, "threads": arguments.threads, "cores": os.cpu_count(),
                 "backend": _C.row_copy_backends()[0], "figures": figures, "cases": results}  # fmt: skip
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(saved, file, indent=1)


if __name__ == "__main__":
    main()
