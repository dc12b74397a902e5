"""`memsys trace`: trains a few steps of the reference GPT and writes what its links and tiers did in that time."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from memsys.budget import format_bytes
from memsys.cli.console import Printer
from memsys.cli.native import stats_of
from memsys.cli.setting import Setting, add_setting_options, positive
from memsys.cli.train import DEFAULTS, LONG_DEFAULTS
from memsys.report.timeline import COMPUTE, LINKS, Timeline

_COLUMNS = ("lane", "busy", "of the time", "moved", "rate while busy")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, default=3, help="training steps (%(default)s)")
    parser.add_argument("--output", metavar="FILE", default="trace.json", help="the record (%(default)s)")
    parser.add_argument("--png", metavar="FILE", help="also draw it (needs matplotlib)")
    add_setting_options(parser, DEFAULTS, LONG_DEFAULTS)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    from memsys.cli.run import Run

    setting = Setting.from_arguments(arguments)
    with contextlib.suppress(FileExistsError), open(arguments.output, "x"):  # before the steps, not after them
        pass
    run_ = Run.build(setting)
    printer.line(f"{setting.describe()}: {arguments.steps} steps on {run_.device.type} ...")
    timeline, losses, stats = record(run_, arguments.steps)
    timeline.save(arguments.output)
    if arguments.png:
        timeline.plot(arguments.png)
    describe(timeline, printer)
    printer.line(f"written: {arguments.output} (open it at https://ui.perfetto.dev)")
    result: dict[str, Any] = {"setting": vars(setting), "loss": losses, **timeline.summary()}
    printer.result(result | {"stats": stats, "output": arguments.output, "png": arguments.png})
    return 0


def record(run: Any, steps: int) -> tuple[Timeline, list[float], dict[str, int]]:
    """The timeline of `steps` steps under memsys, their losses and the stats; leaves the model without memsys."""
    import memsys

    memsys.offload(run.model, **run.setting.offload_keywords())
    try:
        with memsys.record_timeline(run.model) as timeline:
            losses = [run.step(step)[0] for step in range(steps)]
        return timeline, losses, stats_of(run.model)
    finally:
        memsys.restore(run.model)


def describe(timeline: Timeline, printer: Printer) -> None:
    """Prints the record in a few lines."""
    facts = timeline.summary()
    rows = []
    for lane in (COMPUTE, *LINKS):
        busy_s, moved = timeline.busy_us(lane) / 1e6, facts["lane_bytes"].get(lane, 0)
        if busy_s > 0:
            rate = f"{moved / busy_s / 1e9:.2f} GB/s" if moved else ""
            rows.append([lane, f"{busy_s:.2f} s", f"{timeline.busy_share(lane):.0%}", format_bytes(moved), rate])
    printer.table(f"{timeline.duration_us / 1e6:.2f} s", _COLUMNS, rows)
    stall_s, remake_s = facts["stall_us"] / 1e6, facts["remake_us"] / 1e6
    printer.line(f"of compute, {stall_s:.2f} s waited for transfers and {remake_s:.2f} s made tensors again")
    peaks = ", ".join(f"{tier} {format_bytes(bytes_)}" for tier, bytes_ in facts["peak_bytes"].items() if bytes_)
    printer.line(f"peak: {peaks or 'nothing was kept or moved'}")
    if timeline.dropped_count:
        printer.line(f"{timeline.dropped_count} older entries did not fit the record; trace fewer steps", "yellow")
