"""What do memory saved by memsys, and by its peers, cost in time? A GPT trained four ways on the CPU, files below RAM.

As a script it measures in earnest and prints medians beside plain torch's and the measured peak of the file link:

    python benchmarks/bench_swap.py --layers 12 --seq 2048 --dtype fp32 --rounds 3

Each mode runs in a fresh process, modes in turn. As a pytest item it is one round of a small model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shown
import torch

from memsys.budget import default_spill_dir, format_bytes
from memsys.cli.console import plain_table
from memsys.cli.measure import MODES, measure_in_process
from memsys.cli.setting import Setting, add_setting_options, positive
from memsys.report import links

_UNTOUCHED = "untouched"
# A saved tensor under 256 KiB stays by default; this makes some of 512 KiB.
_SMOKE = Setting(layers=2, width=128, seq=1024, device="cpu", policy="all")
_DEFAULTS = Setting(layers=12, policy="all")


def measure_swap(
    setting: Setting,
    rounds: int,
    steps: int,
    mmap_threshold: int | None = None,
    modes: Sequence[str] = MODES,
    tell: Any = lambda line: None,
) -> dict[str, Any]:
    """Machine, setting, file rates and, for each way to train, medians over all rounds and their ratios to plain.

    With an mmap threshold every way runs under it, and plain torch once more without, as "untouched": the ratios to
    that one are `untouched_growth_share` and `untouched_step_ratio`.
    """
    rates = links.measure_file_rates(setting.spill_dir or default_spill_dir())
    ways = {mode: (mode, mmap_threshold) for mode in modes}
    if mmap_threshold is not None:
        ways[_UNTOUCHED] = ("plain", None)
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way, (mode, threshold) in ways.items():
            tell(f"round {turn + 1} of {rounds}: {way}")
            results[way].append(measure_in_process(setting, mode, steps, threshold))
    reference = results["plain"][0]["loss"]
    summaries = {way: summarise(measured, reference) for way, measured in results.items()}
    add_ratios(summaries, "plain", "")
    if _UNTOUCHED in summaries:
        add_ratios(summaries, _UNTOUCHED, "untouched_")
    return {
        "machine": machine(),
        "setting": vars(setting),
        "mmap_threshold": mmap_threshold,
        "rounds": rounds,
        "steps": steps,
        "file_rates_bytes_per_s": {"write": rates.write_rate, "read": rates.read_rate},
        "modes": summaries,
    }


def summarise(results: list[dict[str, Any]], reference: list[float]) -> dict[str, Any]:
    """Medians of one way's rounds, with each round's figures beside them."""
    return {
        "growth_bytes": int(statistics.median(result["growth_bytes"] for result in results)),
        "growth_bytes_by_round": [result["growth_bytes"] for result in results],
        "growth_since": results[0]["growth_since"],
        "median_step_s": statistics.median(second for result in results for second in result["step_s"]),
        "step_s_by_round": [result["step_s"] for result in results],
        "loss_equal": all(result["loss"] == reference for result in results),
        "stats": results[0]["stats"],
    }


def add_ratios(modes: dict[str, dict[str, Any]], base: str, prefix: str) -> None:
    """Growth and step of every mode as a share of those of `base`, under names that begin with `prefix`."""
    for result in modes.values():
        result[prefix + "growth_share"] = result["growth_bytes"] / max(1, modes[base]["growth_bytes"])
        result[prefix + "step_ratio"] = result["median_step_s"] / modes[base]["median_step_s"]


def machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu_count": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report_lines(measured: dict[str, Any]) -> list[str]:
    """The table of all ways, and how much of the file link memsys used."""
    modes = measured["modes"]
    prefixes = ("", "untouched_") if _UNTOUCHED in modes else ("",)
    columns = ["mode", "growth", "median step"]
    for prefix in prefixes:
        base = prefix.rstrip("_") or "plain"
        columns += [f"growth / {base}", f"step / {base}"]
    rows = []
    for mode, result in modes.items():
        row = [mode, format_bytes(result["growth_bytes"]), f"{result['median_step_s']:.3f} s"]
        for prefix in prefixes:
            row += [f"{result[prefix + 'growth_share']:.0%}", f"{result[prefix + 'step_ratio']:.3f}"]
        rows.append(row)
    different = [mode for mode, result in modes.items() if not result["loss_equal"]]
    losses = f"losses DIFFER from plain: {', '.join(different)}" if different else "losses equal to the last bit"
    title = f"medians; growth of peak memory over the loaded model, counted since: {modes['plain']['growth_since']}"
    return [plain_table(title, columns, rows), *link_lines(measured), losses]


def link_lines(measured: dict[str, Any]) -> list[str]:
    """Bytes that memsys moved in a step over the whole step's time, against the measured peak of the file link."""
    rates, result = measured["file_rates_bytes_per_s"], measured["modes"].get("memsys")
    if result is None:
        return []
    # The counters cover every step, the untimed first one too.
    count = measured["steps"] + 1
    return [
        shown.share_of_peak(
            f"memsys {way}, over the whole step",
            result["stats"][field] // count,
            [result["median_step_s"]],
            rates[peak],
            f"measured file {peak} peak",
        )
        for way, field, peak in (("out", "out_bytes", "write"), ("in", "in_bytes", "read"))
    ]


def test_swap(benchmark, capsys, tmp_path: Path) -> None:
    """Every mode once in its own process; memsys moves something and no mode changes the loss."""
    setting = Setting(**{**vars(_SMOKE), "spill_dir": str(tmp_path)})
    measured = benchmark.pedantic(measure_swap, args=(setting, 1, 1), rounds=1, iterations=1)
    benchmark.extra_info.update(measured)
    shown.show(capsys, *report_lines(measured), "(smoke size: these figures mean nothing)")
    assert measured["modes"]["memsys"]["stats"]["out_bytes"] > 0
    assert all(result["loss_equal"] for result in measured["modes"].values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3, help="processes for each mode, in turn (%(default)s)")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps in each process (%(default)s)")
    parser.add_argument("--mmap-threshold", type=int, metavar="BYTES", help="fix glibc's mmap threshold in every mode")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="plain is always measured")
    add_setting_options(parser, _DEFAULTS)
    arguments = parser.parse_args()
    setting = Setting.from_arguments(arguments)
    modes = ["plain", *(mode for mode in MODES if mode in arguments.modes and mode != "plain")]
    measured = measure_swap(setting, arguments.rounds, arguments.steps, arguments.mmap_threshold, modes, tell=print)
    print(setting.describe(), *report_lines(measured), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0 if all(result["loss_equal"] for result in measured["modes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
