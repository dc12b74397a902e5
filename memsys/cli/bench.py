"""`memsys bench`: step time and peak memory growth of each way to train the reference GPT, and of its links."""

from __future__ import annotations

import argparse

from memsys.budget import default_spill_dir
from memsys.cli.compare import COLUMNS, add_comparison_options, chosen_modes, compare, table_rows
from memsys.cli.console import Printer
from memsys.cli.setting import Setting, add_setting_options
from memsys.report import links


def add_options(parser: argparse.ArgumentParser) -> None:
    add_comparison_options(parser)
    add_setting_options(parser)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    setting = Setting.from_arguments(arguments)
    file = links.measure_file_rates(setting.spill_dir or default_spill_dir())
    printer.line(f"{setting.describe()}; links: {link_text(file)}")
    compared = compare(setting, chosen_modes(arguments), arguments.rounds, arguments.steps, tell=printer.line)
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
