"""`memsys verify`: gradients with and without memsys bit for bit, of a training script or of the reference GPT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memsys.cli.console import Printer
from memsys.cli.native import verify_run
from memsys.cli.setting import Setting, add_setting_options, positive
from memsys.errors import InputError

_DEFAULTS = Setting(layers=4, seq=1024, policy="all")
_OFFLOAD = ("device_budget", "host_budget", "disk_budget", "spill_dir", "policy", "return_memory")
_EPILOG = (
    "With SCRIPT: it is run as `python SCRIPT ARGUMENTS` would, in processes of its own, once without memsys and once "
    "with every model that it trains offloaded; the gradients of every optimizer step are compared. Where they differ, "
    "a third run, without memsys, tells whether the script repeats itself. If it calls memsys itself, its calls do "
    "nothing in the runs without, and nothing is added to them in the other. Its files are written by each run. "
    "Without SCRIPT: one step of the GPT of `memsys train`. "
    "Status 0: equal. 1: different, or the script fails with memsys alone. 2: nothing could be compared."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="a training script")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENTS", help="the script's own, after --")
    scripts = parser.add_argument_group("of a script")
    scripts.add_argument("--steps", type=positive, help="end each run after so many optimizer steps")
    scripts.add_argument("--min-bytes", type=int, help="smaller tensors stay (0: everything moves)")
    scripts.add_argument("--checksums", action="store_true", help="also check every transfer (offload's verify=True)")
    add_setting_options(parser, _DEFAULTS)


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    if arguments.script is not None:
        return run_script(arguments, printer)
    given = [name for name in ("steps", "min_bytes", "checksums") if getattr(arguments, name) not in (None, False)]
    if given:
        raise InputError(f"{_option(given[0])} is for a script, and none was given; memsys verify SCRIPT")
    return run_reference(Setting.from_arguments(arguments), printer)


def run_reference(setting: Setting, printer: Printer) -> int:
    """One step of the reference GPT."""
    from memsys.cli.run import Run

    printer.line(f"{setting.describe()}, policy {setting.policy}: one step with and without memsys")
    outcome = verify_run(Run.build(setting))
    printer.line(outcome.text, "green" if outcome.equal else "bold red")
    printer.result({"equal": outcome.equal, "report": outcome.text, "setting": vars(setting)})
    return 0 if outcome.equal else 1


def run_script(arguments: argparse.Namespace, printer: Printer) -> int:
    from memsys.cli.script.runs import Script
    from memsys.cli.script.verdict import EQUAL, verify_script

    path = arguments.script
    if not Path(path).is_file():
        raise InputError(f"verify: wanted a Python script, found no file {path}; options of the script go after --")
    options, given = _offload_options(arguments)
    printer.line(f"{path}: without memsys, then with ...")
    verdict = verify_script(Script(path, arguments.arguments, options, arguments.steps), given)
    printer.line(verdict.text, "green" if verdict.outcome == EQUAL else "bold red")
    printer.result({"script": path, "arguments": arguments.arguments, "options": options, **verdict.as_dict()})
    return verdict.status


def _offload_options(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """(keywords of memsys.offload, those options that were given). Refuses options of the reference GPT."""
    changed = [name for name, default in vars(_DEFAULTS).items() if getattr(arguments, name) != default]
    foreign = [name for name in changed if name not in _OFFLOAD]
    if foreign:
        raise InputError(f"{_option(foreign[0])} is for the built-in GPT; options of the script go after --")
    options = {name: getattr(arguments, name) for name in _OFFLOAD}
    options |= {"min_bytes": arguments.min_bytes or 0, "verify": arguments.checksums}
    given = changed + [name for name in ("min_bytes", "checksums") if getattr(arguments, name) not in (None, False)]
    return options, [_option(name) for name in given]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
