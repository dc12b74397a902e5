"""`memsys bench`: step time and peak memory growth of four ways to train the reference GPT, and of its links."""

from __future__ import annotations

import argparse

from memsys.budget import default_spill_dir
from memsys.cli.compare import COLUMNS, compare, table_rows
from memsys.cli.console import Printer
from memsys.cli.measure import MODES
from memsys.cli.setting import Setting, add_setting_options, positive
from memsys.report import links


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=3, help="processes for each mode, in turn (%(default)s)")
    parser.add_argument("--steps", type=positive, default=3, help="timed steps in each process (%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="plain is always measured")
    parser.add_argument("--mmap-threshold", type=int, metavar="BYTES", help="fix glibc's mmap threshold in every mode")
    add_setting_options(parser)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    setting = Setting.from_arguments(arguments)
    modes = ["plain", *(mode for mode in MODES if mode in arguments.modes and mode != "plain")]
    file = links.measure_file_rates(setting.spill_dir or default_spill_dir())
    printer.line(f"{setting.describe()}; links: {link_text(file)}")
    compared = compare(
        setting, modes, arguments.rounds, arguments.steps, mmap_threshold=arguments.mmap_threshold, tell=printer.line
    )
    printer.table("medians", COLUMNS, table_rows(compared))
    rates = {"write": file.write_rate, "read": file.read_rate}
    printer.result({"setting": vars(setting), "file_rates_bytes_per_s": rates, "modes": compared})
    equal = all(result["loss_equal"] for result in compared.values())
    if not equal:
        printer.line("the losses of the modes differ", "bold red")
    return 0 if equal else 1


def link_text(file: links.FileRates) -> str:
    past = "past the page cache" if file.is_direct else "through the page cache"
    return f"file write {file.write_rate / 1e9:.2f} GB/s, read {file.read_rate / 1e9:.2f} GB/s, {past}"
