"""Modes of training side by side: each measured in fresh processes, turn by turn, so that a slow minute hits all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from memsys.budget import format_bytes
from memsys.cli.measure import measure_in_process
from memsys.cli.setting import Setting

TITLES = {
    "plain": "without memsys",
    "memsys": "with memsys",
    "return_memory": "memsys, return_memory",
    "checkpoint": "torch.utils.checkpoint",
    "save_on_cpu": "torch save_on_cpu",
}
COLUMNS = ("mode", "peak memory growth", "of plain", "median step", "of plain")


def compare(
    setting: Setting,
    modes: Sequence[str],
    rounds: int,
    steps: int,
    mmap_threshold: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """For each mode: the medians over `rounds` processes of growth and of all their timed steps.

    `loss` is that of the first round, `loss_equal` whether every round of the mode, and plain, gave the same bits.
    """
    measured: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for turn in range(rounds):
        for mode in modes:
            tell(f"measuring {TITLES[mode]} in its own process, round {turn + 1} of {rounds} ...")
            measured[mode].append(measure_in_process(setting, mode, steps, mmap_threshold))
    reference = measured[modes[0]][0]["loss"]
    return {mode: _summarise(results, reference) for mode, results in measured.items()}


def _summarise(results: list[dict[str, Any]], reference: list[float]) -> dict[str, Any]:
    return {
        "growth_bytes": int(statistics.median(result["growth_bytes"] for result in results)),
        "growth_since": results[0]["growth_since"],
        "median_step_s": statistics.median(second for result in results for second in result["step_s"]),
        "step_s": [result["step_s"] for result in results],
        "loss": results[0]["loss"],
        "loss_equal": all(result["loss"] == reference for result in results),
        "stats": results[0]["stats"],
    }


def table_rows(compared: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows for COLUMNS; the shares are of the mode "plain"."""
    plain = compared["plain"]
    return [
        [
            TITLES[mode],
            format_bytes(result["growth_bytes"]),
            f"{result['growth_bytes'] / max(1, plain['growth_bytes']):.0%}",
            f"{result['median_step_s']:.3f} s",
            f"{result['median_step_s'] / plain['median_step_s']:.2f}x",
        ]
        for mode, result in compared.items()
    ]
