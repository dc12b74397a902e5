"""What the commands that run the reference GPT have in common: model, text, budgets, and their command-line options.

One description serves the live run and the worker processes, so that both run the same thing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from memsys.budget import BudgetFormatError, parse_budget

POLICIES = ("auto", "all", "inputs")
DTYPES = ("fp32", "bf16")


# From here on attention, which grows with the square of the sequence, takes most of a step.
LONG_SEQ = 16384


@dataclass(frozen=True)
class Setting:
    """One training run of the reference GPT. Budgets are texts or None, as `memsys.offload` takes them."""

    layers: int = 6
    width: int = 512
    seq: int = 2048
    batch: int = 1
    dtype: str = "fp32"
    lr: float = 1e-3
    seed: int = 0
    data: str | None = None
    device: str = "auto"
    device_budget: str | None = None
    host_budget: str | None = None
    disk_budget: str | None = None
    spill_dir: str | None = None
    policy: str = "auto"
    return_memory: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Setting:
        """The setting that was asked for; what was left open depends on the length of the sequence."""
        given = {field.name: getattr(arguments, field.name) for field in fields(cls)}
        for name, (short, long) in getattr(arguments, "by_length", {}).items():
            if given[name] is None:
                given[name] = long if arguments.seq >= LONG_SEQ else short
        return cls(**given)

    @property
    def is_long(self) -> bool:
        return self.seq >= LONG_SEQ

    def to_argv(self) -> list[str]:
        """The options that give this setting again."""
        argv: list[str] = []
        for field in fields(self):
            value, option = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if value is True:
                argv.append(option)
            elif value is not None and value is not False:
                argv += [option, str(value)]
        return argv

    def offload_keywords(self) -> dict[str, Any]:
        """The keyword arguments of `memsys.offload`."""
        names = ("device_budget", "host_budget", "disk_budget", "spill_dir", "policy", "return_memory")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        return f"GPT of {self.layers} layers, width {self.width}, sequence {self.seq}, batch {self.batch}, {self.dtype}"


def positive(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def budget_text(text: str) -> str:
    """argparse type: a budget, refused before anything is loaded if it makes no sense."""
    try:
        parse_budget(text, lambda: 0)
    except BudgetFormatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_setting_options(
    parser: argparse.ArgumentParser, defaults: Setting | None = None, long: Setting | None = None
) -> None:
    """Adds one option for each field of Setting. `long`: other sizes and device budget, from LONG_SEQ on."""
    defaults = defaults or Setting()
    _add_options(parser, defaults, " (%(default)s)" if long is None else "")
    if long is None:
        return
    names = ("layers", "width", "device_budget")
    parser.set_defaults(
        by_length={name: (getattr(defaults, name), getattr(long, name)) for name in names}, **dict.fromkeys(names)
    )
    told = ", ".join(f"{name.replace('_', ' ')} {getattr(long, name)}" for name in names)
    parser.epilog = (
        f"Unless given: layers {defaults.layers}, width {defaults.width}, device budget {defaults.device_budget}; for "
        f"sequences of {LONG_SEQ} and more {told}."
    )


def _add_options(parser: argparse.ArgumentParser, defaults: Setting, shown: str) -> None:
    model = parser.add_argument_group("model and text")
    model.add_argument("--layers", type=positive, default=defaults.layers, help=f"layers of the GPT{shown}")
    model.add_argument("--width", type=positive, default=defaults.width, help=f"width, a multiple of 64{shown}")
    model.add_argument("--seq", type=positive, default=defaults.seq, help="bytes in a sequence (%(default)s)")
    model.add_argument("--batch", type=positive, default=defaults.batch, help="sequences in a step (%(default)s)")
    model.add_argument("--dtype", choices=DTYPES, default=defaults.dtype, help="of the weights (%(default)s)")
    model.add_argument("--lr", type=float, default=defaults.lr, help="learning rate of AdamW (%(default)s)")
    model.add_argument("--seed", type=int, default=defaults.seed, help="of weights and batches (%(default)s)")
    model.add_argument("--data", metavar="FILE", help="text to train on (the Python standard library's source)")
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if any")
    budgets = parser.add_argument_group("budgets", 'bytes, "512MiB", "20GB", or "80%%" of what is free')
    budgets.add_argument(
        "--device-budget",
        type=budget_text,
        metavar="BYTES",
        default=defaults.device_budget,
        help=f"top tier{shown}",
    )
    budgets.add_argument(
        "--host-budget",
        type=budget_text,
        metavar="BYTES",
        default=defaults.host_budget,
        help="buffers in RAM (%(default)s)",
    )
    budgets.add_argument(
        "--disk-budget",
        type=budget_text,
        metavar="BYTES",
        default=defaults.disk_budget,
        help="spill files (%(default)s)",
    )
    budgets.add_argument("--spill-dir", metavar="FOLDER", help="for spill files (TMPDIR, or /var/tmp)")
    budgets.add_argument("--policy", choices=POLICIES, default=defaults.policy, help="what moves (%(default)s)")
    budgets.add_argument("--return-memory", action="store_true", help="give freed heap back to the system")
