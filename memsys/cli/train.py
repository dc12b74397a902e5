"""`memsys train`: trains a GPT on real text with activations that exceed the budget, then shows what that cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from memsys.budget import available_host_bytes, default_spill_dir, format_bytes, parse_budget
from memsys.cli.compare import COLUMNS, compare, table_rows
from memsys.cli.console import Printer
from memsys.cli.live import LiveView, StepRecord
from memsys.cli.native import stats_of, verify_run
from memsys.cli.setting import Setting, add_setting_options, positive
from memsys.report import links

# Chosen so that the whole command takes under two minutes on two cores: 6 layers save about 400 MiB a step.
DEFAULTS = Setting(layers=6, width=512, seq=2048, device_budget="128MiB", lr=3e-4)
_COMPARE_ROUNDS = 2
_COMPARE_STEPS = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, default=5, help="training steps (%(default)s)")
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="at the end, measure with and without memsys, and verify gradients (on)",
    )
    add_setting_options(parser, DEFAULTS)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    from memsys.cli.run import Run

    setting = Setting.from_arguments(arguments)
    run_ = Run.build(setting)
    size = announce(run_, printer)
    records, stats = train(run_, arguments.steps, printer)
    result: dict[str, Any] = {"setting": vars(setting), **size, "steps": [asdict(record) for record in records]}
    result["stats"] = stats
    kept = size["device_budget_bytes"] is None or stats["peak_device_bytes"] <= size["device_budget_bytes"]
    result["budget_kept"] = kept
    describe_end(stats, size, kept, printer)
    good = kept
    if arguments.compare:
        outcome = verify_run(run_)
        result["verify"] = {"equal": outcome.equal, "report": outcome.text}
        del run_  # the measured processes get the machine to themselves
        result["compare"] = finish(setting, outcome, printer)
        good = good and outcome.equal and all(mode["loss_equal"] for mode in result["compare"].values())
    printer.result(result)
    return 0 if good else 1


def announce(run_: Any, printer: Printer) -> dict[str, Any]:
    """Prints what will be trained and what exceeds what; returns the sizes in bytes."""
    from memsys.cli.gpt import parameter_count
    from memsys.cli.saved import estimate_saved_bytes

    setting, count = run_.setting, parameter_count(run_.model)
    saved = estimate_saved_bytes(run_.model, *run_.batch(0))
    budget = parse_budget(setting.device_budget, lambda: free_bytes(run_.device))
    printer.line(f"{setting.describe()}, {count / 1e6:.1f} M parameters, on {run_.device.type}")
    printer.line(f"text: {run_.text.name}, {len(run_.text) / 1e6:.1f} MB")
    if budget is None:
        printer.line(f"one step saves about {format_bytes(saved)} for its backward; no device budget is given")
    elif saved > budget:
        printer.line(
            f"one step saves about {format_bytes(saved)} for its backward: that exceeds the device budget of "
            f"{format_bytes(budget)} {saved / max(1, budget):.1f} times",
            "yellow",
        )
        printer.line(f"what does not fit goes to {next_tier(setting, run_.device)}")
    else:
        printer.line(
            f"one step saves about {format_bytes(saved)} for its backward: that fits the device budget of "
            f"{format_bytes(budget)}; raise --seq or --layers, or lower --device-budget, to see memsys at work"
        )
    printer.line()
    return {"saved_bytes": saved, "device_budget_bytes": budget, "parameter_count": count}


def free_bytes(device: Any) -> int:
    """What a percentage of the device budget refers to."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return available_host_bytes()


def next_tier(setting: Setting, device: Any) -> str:
    files = f"files in {setting.spill_dir or default_spill_dir()}"
    return f"pinned host memory, then to {files}" if device.type == "cuda" else files


def train(run_: Any, steps: int, printer: Printer) -> tuple[list[StepRecord], dict[str, int]]:
    """Trains `steps` steps under memsys, showing each; leaves the model without memsys."""
    import memsys

    peak_rate = peak_link_rate(run_)
    memsys.offload(run_.model, **run_.setting.offload_keywords())
    try:
        with LiveView(printer, steps) as view:
            before = stats_of(run_.model)
            for step in range(steps):
                loss, seconds = run_.step(step)
                after = stats_of(run_.model)
                moved = sum(after[name] - before[name] for name in ("out_bytes", "in_bytes"))
                tokens = run_.setting.batch * run_.setting.seq
                tiers = {name: after[name] for name in after if name.startswith("peak_")}
                use = moved / seconds / peak_rate
                view.show(StepRecord(step, loss, seconds, tokens, moved, link_use=use, **tiers))
                before = after
    finally:
        memsys.restore(run_.model)
    return view.records, before


def peak_link_rate(run_: Any) -> float:
    """Bytes per second that the link below the top tier carries at best, reading and writing in turn."""
    if run_.device.type == "cuda":
        first, second = links.measure_gpu_rates()
    else:
        rates = links.measure_file_rates(run_.setting.spill_dir or default_spill_dir())
        first, second = rates.write_rate, rates.read_rate
    return 2 / (1 / first + 1 / second)


def describe_end(stats: dict[str, int], size: dict[str, Any], kept: bool, printer: Printer) -> None:
    printer.line()
    moved = f"moved out {format_bytes(stats['out_bytes'])} and back {format_bytes(stats['in_bytes'])}"
    waited = f"waited {stats['stall_us'] / 1e6:.2f} s for it in all"
    printer.line(f"memsys {moved}, {waited}; {stats['late_count']} of {stats['packed_count']} tensors came late")
    if size["device_budget_bytes"] is not None:
        verb = "stayed within" if kept else "EXCEEDED"
        peak, budget = format_bytes(stats["peak_device_bytes"]), format_bytes(size["device_budget_bytes"])
        printer.line(f"peak on the device: {peak}, {verb} the budget of {budget}", None if kept else "bold red")


def finish(setting: Setting, outcome: Any, printer: Printer) -> dict[str, Any]:
    """Measures with and without memsys, and prints the closing table."""
    compared = compare(setting, ("plain", "memsys"), _COMPARE_ROUNDS, _COMPARE_STEPS, tell=printer.line)
    printer.line()
    title = "growth is of peak memory over the loaded model with its gradients and optimizer state"
    printer.table(title, COLUMNS, table_rows(compared))
    equal = all(mode["loss_equal"] for mode in compared.values())
    printer.line(f"losses of all processes: {'equal to the last bit' if equal else 'DIFFERENT'}")
    printer.line(f"verify: {outcome.text}", "green" if outcome.equal else "bold red")
    return compared
