"""What do memory saved by memsys, and by its peers, cost in time? A GPT trained on the CPU, files below RAM.

As a script it measures in earnest and prints medians beside plain torch's and the measured peak of the file link:

    python benchmarks/bench_swap.py --layers 12 --seq 2048 --dtype fp32 --rounds 3

Each mode runs in a fresh process, and the processes take a step in turn. As a pytest item it is one round of a small
model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shown
import torch

from memsys.budget import default_spill_dir
from memsys.cli.compare import COLUMNS, add_comparison_options, chosen_modes, compare, table_rows
from memsys.cli.console import plain_table
from memsys.cli.measure import MODES
from memsys.cli.setting import Setting, add_setting_options
from memsys.report import links

# A saved tensor under 256 KiB stays by default; this makes some of 512 KiB.
_SMOKE = Setting(layers=2, width=128, seq=1024, device="cpu", policy="all")
_DEFAULTS = Setting(layers=12)


def measure_swap(
    setting: Setting, modes: Sequence[str], rounds: int, steps: int, tell: Any = lambda line: None
) -> dict[str, Any]:
    """Machine, setting, file rates, and for each way to train what `compare` says of it."""
    rates = links.measure_file_rates(setting.spill_dir or default_spill_dir())
    return {
        "machine": machine(),
        "setting": vars(setting),
        "rounds": rounds,
        "steps": steps,
        "file_rates_bytes_per_s": {"write": rates.write_rate, "read": rates.read_rate},
        "modes": compare(setting, modes, rounds, steps, tell),
    }


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
    different = [mode for mode, result in modes.items() if not result["loss_equal"]]
    losses = f"losses DIFFER from plain: {', '.join(different)}" if different else "losses equal to the last bit"
    title = f"medians; growth of peak memory over the loaded model, counted since: {modes['plain']['growth_since']}"
    return [plain_table(title, COLUMNS, table_rows(modes)), *link_lines(measured), losses]


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
    measured = benchmark.pedantic(measure_swap, args=(setting, MODES, 1, 1), rounds=1, iterations=1)
    benchmark.extra_info.update(measured)
    shown.show(capsys, *report_lines(measured), "(smoke size: these figures mean nothing)")
    assert measured["modes"]["memsys"]["stats"]["out_bytes"] > 0
    assert all(result["loss_equal"] for result in measured["modes"].values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_comparison_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    add_setting_options(parser, _DEFAULTS)
    arguments = parser.parse_args()
    setting = Setting.from_arguments(arguments)
    measured = measure_swap(setting, chosen_modes(arguments), arguments.rounds, arguments.steps, tell=print)
    print(setting.describe(), *report_lines(measured), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0 if all(result["loss_equal"] for result in measured["modes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
