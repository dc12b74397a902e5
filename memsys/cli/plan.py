"""`memsys plan`: what would fit and how, before anything is trained: bytes wanted against there, what goes where, the
time that adds, the longest sequence of each way, and the line to paste.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

from memsys.budget import available_disk_bytes, available_host_bytes, default_spill_dir, format_bytes
from memsys.cli.console import Printer
from memsys.cli.setting import budget_text, positive
from memsys.planning.gpus import MACHINES, find_machine
from memsys.planning.hardware import Corner, Machine
from memsys.planning.longest import Longest, longest_sequences
from memsys.planning.policies import NAMES
from memsys.planning.shapes import SHAPES, find_shape
from memsys.planning.simulate import simulate
from memsys.planning.simulation import USABLE_SHARE, Limits, Simulation
from memsys.planning.swap_plan import Choice


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("model and load")
    models = f"{', '.join(SHAPES)} (%(default)s, that of `memsys train`)"
    what.add_argument("--model", choices=SHAPES, metavar="NAME", default="gpt-train", help=models)
    what.add_argument("--seq", type=positive, default=2048, help="positions in a sequence (%(default)s)")
    what.add_argument("--batch", type=positive, default=1, help="sequences in a step (%(default)s)")
    where = parser.add_argument_group("machine")
    machine = where.add_mutually_exclusive_group()
    machine.add_argument("--gpu", choices=MACHINES, metavar="NAME", help=", ".join(MACHINES))
    machine.add_argument("--here", action="store_true", help="this machine: products, memory, links measured (default)")
    where.add_argument("--gpus", type=positive, default=1, help="that share each layer (tensor parallel, %(default)s)")
    where.add_argument("--spill-dir", metavar="FOLDER", help="with --here: whose disk to measure (TMPDIR, or /var/tmp)")
    limits = parser.add_argument_group("budgets of one GPU", 'bytes, "512MiB" or "20GB"')
    limits.add_argument("--device-budget", type=budget_text, metavar="BYTES", help="saved tensors (what is left)")
    limits.add_argument(
        "--host-budget", type=budget_text, metavar="BYTES", help="buffers in RAM (no bound; here: free)"
    )
    limits.add_argument("--disk-budget", type=budget_text, metavar="BYTES", help="spill files (no bound; here: 80%%)")
    parser.add_argument("--policy", choices=NAMES, default="plan", help="what moves (%(default)s)")


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    shape, machine, limits = find_shape(arguments.model), _machine(arguments, printer), _limits(arguments)
    if machine.is_host_memory:
        shape = replace(shape, dtype_bytes=4)  # a processor trains in fp32
    options = {"device_budget": limits.device, "host_budget": limits.host, "disk_budget": limits.file}
    found = {
        corner: simulate(shape, machine, arguments.seq, arguments.gpus, arguments.policy, batch=arguments.batch,
                         corner=corner, **options)
        for corner in Corner
    }  # fmt: skip
    longest = longest_sequences(shape, machine, arguments.gpus, arguments.batch, limits)
    middle = found[Corner.MIDDLE]
    _show(middle, machine, found, printer)
    _show_longest(longest, printer)
    line = paste_line(arguments, middle)
    printer.line()
    printer.line(line, "bold")
    printer.result(as_json(middle, found, longest, machine, line))
    return 0 if middle.fits else 1


def _machine(arguments: argparse.Namespace, printer: Printer) -> Machine:
    if arguments.gpu is not None:
        return find_machine(arguments.gpu)
    from memsys.report.machine import measure_machine

    if not printer.as_json:
        print("measuring this machine ...", file=sys.stderr)
    return measure_machine(arguments.spill_dir)


def _limits(arguments: argparse.Namespace) -> Limits:
    """On this machine, what is free bounds each tier; of a named one nobody knows what is below the GPU."""
    host, file = arguments.host_budget, arguments.disk_budget
    if arguments.gpu is None:
        host = available_host_bytes() if host is None else host
        file = int(0.8 * available_disk_bytes(arguments.spill_dir or default_spill_dir())) if file is None else file
    return Limits(arguments.device_budget, host, file)


def placed_bytes(simulation: Simulation) -> dict[str, int]:
    """Saved bytes by what becomes of them."""
    found: Counter[str] = Counter()
    names = {Choice.KEEP: "stays", Choice.HOST: "host", Choice.FILE: "file", Choice.RECOMPUTE: "made again"}
    plan = simulation.plan
    for span, choice in zip(simulation.trace.spans, plan.choices, strict=True):
        if choice is not Choice.ROWS:
            found[names[choice]] += span.bytes
            continue
        moved = round(plan.alphas.get(span.segment, 1.0) * span.bytes)
        found[names[plan.row_tier]] += moved
        found["made again"] += span.bytes - moved
    return {name: found[name] for name in names.values() if found[name]}


def _show(middle: Simulation, machine: Machine, found: dict[Corner, Simulation], printer: Printer) -> None:
    trace, budgets = middle.trace, middle.budgets
    printer.line(f"{middle.model.name} on {middle.gpus} x {machine.name}, sequence {middle.seq}, batch {middle.batch}: "
                 f"simulated; bytes are one GPU's")  # fmt: skip
    there = int(machine.memory_bytes.value * USABLE_SHARE)
    rows = [[f"{name} (beside)", format_bytes(count), ""] for name, count in trace.resident_bytes.items()]
    rows.append(["transients", format_bytes(trace.transient_peak_bytes), ""])
    for tier, bound in (("device", budgets.device_bytes), ("host", budgets.host_bytes), ("file", budgets.file_bytes)):
        is_there = "no bound given" if bound is None else format_bytes(bound)
        rows.append([f"saved, {tier}", format_bytes(middle.peak_bytes[tier]), is_there])
    rows.append(["saved if all stayed", format_bytes(trace.saved_bytes), ""])
    rows.append(["memory of the device", "", format_bytes(there)])
    printer.table("memory", ["what", "wanted", "there"], rows)
    printer.line()
    total = max(1, trace.saved_bytes)
    places = [[name, format_bytes(count), f"{count / total:.1%}"] for name, count in placed_bytes(middle).items()]
    printer.table(f"what goes where ({middle.plan.solver})", ["place", "bytes", "share"], places)
    if middle.plan.declined:
        printer.line(f"declined: {middle.plan.declined}")
    printer.line()
    low, high = found[Corner.LOW], found[Corner.HIGH]
    printer.line(f"step {middle.step_us / 1e6:.3f} s ({high.step_us / 1e6:.3f} to {low.step_us / 1e6:.3f}), MFU "
                 f"{middle.mfu:.1%} ({low.mfu:.1%} to {high.mfu:.1%})")  # fmt: skip
    printer.line(f"added time {middle.added_us / 1e6:.3f} s ({middle.added_us / middle.step_us:.1%}): waiting "
                 f"{middle.exposed_us / 1e6:.3f} s, computing again {middle.remade_us / 1e6:.3f} s")  # fmt: skip
    for item in middle.overruns:
        printer.line(f"does not fit: {item.tier} wants {format_bytes(item.wanted_bytes)} of "
                     f"{format_bytes(item.budget_bytes)}", "bold red")  # fmt: skip
    doubtful = [name for name, figure in machine.figures().items() if not figure.is_verified]
    if doubtful:
        printer.line(f"unverified: {', '.join(doubtful)}")


def _show_longest(longest: dict[str, Longest], printer: Printer) -> None:
    printer.line()
    rows = []
    for name, found in longest.items():
        step = "" if found.last is None else f"{found.last.step_us / 1e6:.3f} s"
        rows.append([name, f"{found.seq}{' and more' if found.is_unbounded else ''}", found.stopped_by, step])
    printer.table("longest sequence", ["way", "positions", "stopped by", "step there"], rows)


def paste_line(arguments: argparse.Namespace, middle: Simulation) -> str:
    """The call that asks for this, with the budgets that were given; the device's where none was."""
    given = {"device_budget": arguments.device_budget, "host_budget": arguments.host_budget,
             "disk_budget": arguments.disk_budget}  # fmt: skip
    if given["device_budget"] is None:
        given["device_budget"] = f"{middle.budgets.device_bytes + middle.trace.transient_peak_bytes >> 20}MiB"
    keywords = "".join(f', {name}="{value}"' for name, value in given.items() if value is not None)
    return f"model = memsys.offload(model{keywords})"


def as_json(
    middle: Simulation, found: dict[Corner, Simulation], longest: dict[str, Longest], machine: Machine, line: str
) -> dict[str, Any]:
    """Everything that is printed, in bytes and microseconds."""
    return {
        "model": middle.model.name, "machine": middle.machine, "seq": middle.seq, "batch": middle.batch,
        "gpus": middle.gpus, "policy": middle.policy, "fits": middle.fits,
        "overruns": [asdict(item) for item in middle.overruns],
        "resident_bytes": dict(middle.trace.resident_bytes),
        "transient_bytes": middle.trace.transient_peak_bytes,
        "saved_bytes": middle.trace.saved_bytes,
        "peak_bytes": dict(middle.peak_bytes),
        "budget_bytes": {"device": middle.budgets.device_bytes, "host": middle.budgets.host_bytes,
                         "file": middle.budgets.file_bytes},
        "placed_bytes": placed_bytes(middle),
        "declined": middle.plan.declined,
        "step_us": {corner.name.lower(): one.step_us for corner, one in found.items()},
        "mfu": {corner.name.lower(): one.mfu for corner, one in found.items()},
        "added_us": middle.added_us, "stall_us": middle.exposed_us, "remade_us": middle.remade_us,
        "alpha": middle.alpha,
        "longest": {name: {"seq": item.seq, "stopped_by": item.stopped_by, "unbounded": item.is_unbounded}
                    for name, item in longest.items()},
        "figures": {name: asdict(figure) for name, figure in machine.figures().items()},
        "line": line,
    }  # fmt: skip
