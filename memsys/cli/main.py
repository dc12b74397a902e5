"""The `memsys` command: parses, runs one subcommand, and turns errors into one line and an exit status.

Status 0: all is well. 1: it does not fit, or a check failed. 2: an error, or options that make no sense.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from memsys.cli.console import Printer

COMMANDS = {
    "train": "train a GPT past the memory budget, and compare with training without memsys",
    "plan": "what fits and how, before training: bytes, places, added time, the longest sequence",
    "verify": "one training step with and without memsys; gradients compared bit for bit",
    "bench": "step time and peak memory of plain torch, checkpointing, save_on_cpu and memsys",
    "trace": "record a few training steps: what each link did, and how full each tier was, as a file for Perfetto",
    "doctor": "check this machine, with a remedy for each problem",
    "env": "facts about this machine to paste into a bug report",
}
EXIT_OK, EXIT_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


def make_parser(loaded: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The whole command line; only the commands in `loaded` are imported and get their options."""
    parser = argparse.ArgumentParser(prog="memsys", description="Train models that do not fit in memory.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        if name in loaded:
            module = importlib.import_module(f"memsys.cli.{name}")
            module.add_options(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: sys.argv) and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser([name for name in words[:1] if name in COMMANDS])
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments, Printer(arguments.json))
    except KeyboardInterrupt:
        print("memsys: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        print(f"memsys: {_one_line(error)}", file=sys.stderr)
        return status


def _status_of(error: Exception) -> int | None:
    """The exit status of an error that has said what it has to say; None for a defect, which keeps its traceback."""
    from memsys.budget import BudgetFormatError
    from memsys.cli.turns import MeasureError

    if isinstance(error, MemoryError):
        return EXIT_FAILED  # memsys.BudgetError is one: it does not fit
    if isinstance(error, (BudgetFormatError, MeasureError, OSError)):
        return EXIT_ERROR
    # memsys's own errors, by their place: what broke may be the module that defines them.
    if any(kind.__module__.partition(".")[0] == "memsys" for kind in type(error).__mro__):
        return EXIT_ERROR
    if isinstance(error, ImportError):
        return EXIT_ERROR
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        text += "; reinstall with `pip install .` in the source folder, `memsys doctor` says what is missing"
    return text


if __name__ == "__main__":
    sys.exit(main())
