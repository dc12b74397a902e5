"""What do the hooks cost where they move nothing? A pack with its unpack, a step with nothing to move, the import.

As a script it measures in earnest; every figure is a median of interleaved rounds:

    python benchmarks/bench_hooks.py --json hooks.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import shown
import torch

import memsys
from memsys.cli.run import Run
from memsys.cli.setting import Setting

_PAIRS = 500
_ROUNDS = 15
_STEP = Setting(layers=4, width=512, seq=512, device="cpu")
_SMOKE_STEP = Setting(layers=1, width=64, seq=64, device="cpu")
_NOTHING = 1 << 62  # as min_bytes: larger than any tensor
_IMPORT = "import torch, time; begin = time.perf_counter(); import memsys; print((time.perf_counter() - begin) * 1e3)"


def pair_microseconds(source: torch.Tensor, chained: bool, pairs: int = _PAIRS, rounds: int = _ROUNDS) -> float:
    """A pack and an unpack of one saved tensor that stays: the time with hooks less that without, by the pair."""

    def run() -> float:
        begin = time.perf_counter()
        result = source
        for _ in range(pairs):  # sin saves its input
            result = result.sin() if chained else source.sin()
        result.sum().backward()
        if not chained:
            source.grad = None
        return time.perf_counter() - begin

    def run_hooked() -> float:
        with memsys.offload_activations(min_bytes=_NOTHING):
            return run()

    extra = []
    for _ in range(rounds):
        without, hooked = run(), run_hooked()
        extra.append(hooked - without)
    return statistics.median(extra) / pairs * 1e6


def recorder_microseconds(pairs: int = _PAIRS, rounds: int = _ROUNDS) -> float:
    """What recording adds to a save and a read of a span that stays: a step is recorded for its plan."""
    source = torch.rand(64, requires_grad=True)

    def run(is_recorded: bool) -> float:
        # All fits the budget, so nothing moves after the first step, which is not timed.
        budget = {"device_budget": 1 << 30} if is_recorded else {"policy": _keep}
        scope = memsys.offload_activations(min_bytes=1, **budget)
        for _ in range(3):
            begin = time.perf_counter()
            with scope:
                result = source
                for _ in range(pairs):
                    result = result.sin()
            result.sum().backward()
        return time.perf_counter() - begin

    return statistics.median(run(True) - run(False) for _ in range(rounds)) / pairs * 1e6


def _keep(saved: memsys.SavedTensor) -> memsys.Decision:
    return memsys.KEEP


def step_ratio(setting: Setting, rounds: int = _ROUNDS) -> float:
    """A step of an offloaded model of which nothing moves, over the same step of the plain model."""
    plain, wrapped = Run.build(setting), Run.build(setting)
    memsys.offload(wrapped.model, min_bytes=_NOTHING)
    ways: list[Callable[[int], tuple[float, float]]] = [plain.step, wrapped.step]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for way in (0, 1) if turn % 2 else (1, 0):
            seconds[way].append(ways[way](turn)[1])
    memsys.restore(wrapped.model)
    return statistics.median(seconds[1][1:]) / statistics.median(seconds[0][1:])


def import_milliseconds(rounds: int = _ROUNDS) -> float:
    """`import memsys` after torch, in fresh processes."""
    path = os.pathsep.join(filter(None, [str(Path(memsys.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-c", _IMPORT]
    times = []
    for _ in range(rounds):
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        times.append(float(done.stdout))
    return statistics.median(times)


def measure(setting: Setting, pairs: int, rounds: int) -> dict[str, float]:
    leaf = torch.rand(64, requires_grad=True)
    return {
        "small_tensor_pair_us": pair_microseconds(leaf, True, pairs, rounds),
        "leaf_pair_us": pair_microseconds(leaf, False, pairs, rounds),
        "recorded_pair_us": recorder_microseconds(pairs, rounds),
        "step_ratio_nothing_moved": step_ratio(setting, rounds),
        "import_ms": import_milliseconds(rounds),
    }


def report_lines(measured: dict[str, float]) -> list[str]:
    return [
        f"pack + unpack of a tensor under min_bytes: {measured['small_tensor_pair_us']:.1f} us",
        f"pack + unpack of a leaf: {measured['leaf_pair_us']:.1f} us",
        f"recording a step, for each pack + unpack: {measured['recorded_pair_us']:.1f} us",
        f"step with nothing to move / plain step: {measured['step_ratio_nothing_moved']:.4f}",
        f"import memsys, after torch: {measured['import_ms']:.0f} ms",
    ]


def test_hooks(benchmark, capsys) -> None:
    """Every part once; nothing may have moved."""
    measured = benchmark.pedantic(measure, args=(_SMOKE_STEP, 20, 1), rounds=1, iterations=1)
    benchmark.extra_info.update(measured)
    shown.show(capsys, *report_lines(measured), "(smoke size: these figures mean nothing)")
    assert measured["step_ratio_nothing_moved"] > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    arguments = parser.parse_args()
    measured = measure(_STEP, _PAIRS, _ROUNDS)
    print(*report_lines(measured), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
