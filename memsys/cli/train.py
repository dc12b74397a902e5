"""`memsys train`: trains a GPT on real text with activations that exceed the budget, then shows what that cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from memsys.activations.limits import free_device_bytes
from memsys.budget import default_spill_dir, format_bytes, parse_budget
from memsys.cli.compare import COLUMNS, compare, table_rows
from memsys.cli.console import Printer, SilentPrinter
from memsys.cli.live import LiveView, StepRecord
from memsys.cli.native import stats_of, verify_run
from memsys.cli.parallel import KINDS, Ranks, open_ranks
from memsys.cli.run import Run
from memsys.cli.setting import LONG_SEQ, Setting, add_setting_options, positive
from memsys.report import links

# Chosen so that the whole command takes under two minutes on two cores: 6 layers save about 400 MiB a step.
DEFAULTS = Setting(layers=6, width=512, seq=2048, device_budget="128MiB", lr=3e-4)
# Of a long context: minutes a step at 65536 bytes, most of it attention, which saves little.
LONG_DEFAULTS = Setting(layers=2, width=128, device_budget="512MiB")
_STEPS, _LONG_STEPS = 5, 2
_COMPARE_ROUNDS = 2
_COMPARE_STEPS = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=positive, help=f"training steps ({_STEPS}; {_LONG_STEPS} of {LONG_SEQ} bytes and more)"
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="at the end, verify gradients, and measure with and without memsys (on below "
        f"{LONG_SEQ} bytes; with --parallel gradients only)",
    )
    parser.add_argument(
        "--parallel", choices=KINDS, help="train in the processes that torchrun started, each under these budgets"
    )
    add_setting_options(parser, DEFAULTS, LONG_DEFAULTS)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    setting = Setting.from_arguments(arguments)
    with open_ranks(arguments.parallel, setting.device) as ranks:
        steps = arguments.steps or (_LONG_STEPS if setting.is_long else _STEPS)
        compares = not setting.is_long if arguments.compare is None else arguments.compare
        return run_ranks(setting, ranks, steps, compares, printer if ranks.is_first else SilentPrinter())


def run_ranks(setting: Setting, ranks: Ranks, steps: int, compares: bool, printer: Printer) -> int:
    """What each process does; returns the exit status, the same in all."""
    run_ = Run.build(setting, ranks)
    size = announce(run_, printer)
    records, stats = train(run_, steps, printer)
    result: dict[str, Any] = {"setting": vars(setting), **size, "steps": [asdict(record) for record in records]}
    result["stats"] = stats
    kept = size["device_budget_bytes"] is None or stats["peak_device_bytes"] <= size["device_budget_bytes"]
    result["budget_kept"] = kept = all(ranks.gather(kept))
    describe_end(stats, size, kept, printer)
    good = kept
    if ranks.kind is not None:
        result["parallel"] = describe_ranks(run_, stats, printer)
        good = good and result["parallel"]["replicas_equal"] is not False
    if compares:
        outcome = verify_run(run_)
        equal = all(ranks.gather(outcome.equal))
        result["verify"] = {"equal": equal, "report": outcome.text}
        printer.line(outcome.text, "green" if equal else "bold red")
        good = good and equal
        if ranks.kind is None:
            del run_  # the measured processes get the machine to themselves
            result["compare"] = finish(setting, printer)
            good = good and all(mode["loss_equal"] for mode in result["compare"].values())
    printer.result(result)
    return 0 if good else 1


def announce(run_: Run, printer: Printer) -> dict[str, Any]:
    """Prints what will be trained and what exceeds what; returns the sizes in bytes."""
    from memsys.cli.gpt import parameter_count
    from memsys.cli.saved import estimate_run_bytes

    setting, count = run_.setting, parameter_count(run_.model)
    saved = estimate_run_bytes(run_)
    budget = parse_budget(setting.device_budget, free_device_bytes)
    printer.line(f"{setting.describe()}, {count / 1e6:.1f} M parameters, on {run_.device.type}")
    printer.line(f"text: {run_.text.name}, {len(run_.text) / 1e6:.1f} MB")
    if run_.ranks.kind is not None:
        printer.line(f"{run_.ranks.count} processes by {run_.ranks.kind}, each with its own sequences and budgets")
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


def next_tier(setting: Setting, device: Any) -> str:
    files = f"files in {setting.spill_dir or default_spill_dir()}"
    return f"pinned host memory, then to {files}" if device.type == "cuda" else files


def train(run_: Run, steps: int, printer: Printer) -> tuple[list[StepRecord], dict[str, int]]:
    """Trains `steps` steps under memsys, showing each; leaves the model without memsys."""
    import memsys

    peak_rate = run_.ranks.by_first(lambda: peak_link_rate(run_))
    memsys.offload(run_.model, **run_.setting.offload_keywords())
    try:
        with LiveView(printer, steps) as view:
            before = stats_of(run_.model)
            for step in range(steps):
                loss, seconds = run_.step(step)
                loss = run_.ranks.mean(loss)
                after = stats_of(run_.model)
                moved = sum(after[name] - before[name] for name in ("out_bytes", "in_bytes"))
                tokens = run_.setting.batch * run_.setting.seq * run_.ranks.count
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


def describe_ranks(run_: Run, stats: dict[str, int], printer: Printer) -> dict[str, Any]:
    """What each process moved and held, and whether DDP kept their weights the same (None where they are sharded)."""
    ranks = run_.ranks
    by_rank = ranks.gather(stats)
    rows = [
        [str(rank), *(format_bytes(found[name]) for name in ("out_bytes", "peak_device_bytes", "peak_file_bytes"))]
        for rank, found in enumerate(by_rank)
    ]
    printer.table("by process", ("rank", "moved out", "peak on the device", "in files"), rows)
    equal = ranks.have_equal(run_.model) if ranks.kind == "ddp" else None
    if equal is not None:
        printer.line(f"weights of all processes: {'equal to the last bit' if equal else 'DIFFERENT'}")
    return {"kind": ranks.kind, "process_count": ranks.count, "stats_by_rank": by_rank, "replicas_equal": equal}


def finish(setting: Setting, printer: Printer) -> dict[str, Any]:
    """Measures with and without memsys, and prints the closing table."""
    compared = compare(setting, ("plain", "memsys"), _COMPARE_ROUNDS, _COMPARE_STEPS, tell=printer.line)
    printer.line()
    title = "growth is of peak memory over the loaded model with its gradients and optimizer state"
    printer.table(title, COLUMNS, table_rows(compared))
    equal = all(mode["loss_equal"] for mode in compared.values())
    printer.line(f"losses of all processes: {'equal to the last bit' if equal else 'DIFFERENT'}")
    return compared
