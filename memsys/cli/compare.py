"""Modes of training side by side, measured step by step in turn, summarised as medians and as ratios to plain torch."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from memsys.budget import format_bytes
from memsys.cli.measure import MODES
from memsys.cli.setting import Setting, positive
from memsys.cli.turns import measure_in_turns

TITLES = {
    "plain": "without memsys",
    "memsys": "with memsys",
    "return_memory": "memsys, return_memory",
    "checkpoint": "torch.utils.checkpoint",
    "save_on_cpu": "torch save_on_cpu",
}
COLUMNS = ("mode", "peak memory growth", "of plain", "median step", "of plain", "turn by turn")


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that compare: how often, and what."""
    parser.add_argument("--rounds", type=positive, default=3, help="fresh processes for each mode (%(default)s)")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps in each process (%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="plain is always measured")


def chosen_modes(arguments: argparse.Namespace) -> list[str]:
    """The modes asked for, plain first."""
    return ["plain", *(mode for mode in MODES if mode in arguments.modes and mode != "plain")]


def compare(
    setting: Setting,
    modes: Sequence[str],
    rounds: int,
    steps: int,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """For each mode, of which the first is "plain", the medians over `rounds` processes and all their timed steps.

    `growth_share` and `step_ratio` are ratios of medians to plain's; `paired_step_ratio` is the median ratio of a step
    to plain's of the same turn, which a machine that changes its speed disturbs less. `loss` is that of the first
    round, `loss_equal` whether every round of the mode, and plain, gave the same bits.
    """
    measured: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for turn in range(rounds):
        tell(f"round {turn + 1} of {rounds}: {', '.join(TITLES[mode] for mode in modes)}, a step of each in turn ...")
        for mode, result in measure_in_turns(setting, modes, steps).items():
            measured[mode].append(result)
    reference = measured[modes[0]][0]["loss"]
    compared = {mode: _summarise(results, reference) for mode, results in measured.items()}
    plain = compared[modes[0]]
    for result in compared.values():
        result["growth_share"] = result["growth_bytes"] / max(1, plain["growth_bytes"])
        result["step_ratio"] = result["median_step_s"] / plain["median_step_s"]
        pairs = zip(_steps(result), _steps(plain), strict=True)
        result["paired_step_ratio"] = statistics.median(own / base for own, base in pairs)
    return compared


def _steps(result: dict[str, Any]) -> list[float]:
    return [seconds for steps in result["step_s_by_round"] for seconds in steps]


def _summarise(results: list[dict[str, Any]], reference: list[float]) -> dict[str, Any]:
    return {
        "growth_bytes": int(statistics.median(result["growth_bytes"] for result in results)),
        "growth_bytes_by_round": [result["growth_bytes"] for result in results],
        "growth_since": results[0]["growth_since"],
        "median_step_s": statistics.median(second for result in results for second in result["step_s"]),
        "step_s_by_round": [result["step_s"] for result in results],
        "loss": results[0]["loss"],
        "loss_equal": all(result["loss"] == reference for result in results),
        "stats": results[0]["stats"],
    }


def table_rows(compared: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows for COLUMNS."""
    return [
        [
            TITLES[mode],
            format_bytes(result["growth_bytes"]),
            f"{result['growth_share']:.0%}",
            f"{result['median_step_s']:.3f} s",
            f"{result['step_ratio']:.3f}x",
            f"{result['paired_step_ratio']:.3f}x",
        ]
        for mode, result in compared.items()
    ]
