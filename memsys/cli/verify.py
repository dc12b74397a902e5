"""`memsys verify`: one step of the reference GPT with and without memsys, loss and gradients compared bit for bit."""

from __future__ import annotations

import argparse

from memsys.cli.console import Printer
from memsys.cli.native import verify_run
from memsys.cli.setting import Setting, add_setting_options


def add_options(parser: argparse.ArgumentParser) -> None:
    add_setting_options(parser, Setting(layers=4, seq=1024, policy="all"))


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    from memsys.cli.run import Run

    setting = Setting.from_arguments(arguments)
    printer.line(f"{setting.describe()}, policy {setting.policy}: one step with and without memsys")
    outcome = verify_run(Run.build(setting))
    printer.line(outcome.text, "green" if outcome.equal else "bold red")
    printer.result({"equal": outcome.equal, "report": outcome.text, "setting": vars(setting)})
    return 0 if outcome.equal else 1
