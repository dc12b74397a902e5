"""How the commands print: rich on a terminal, plain text elsewhere (a pipe, NO_COLOR), one JSON object under --json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def wants_rich(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that may show colour, and rich is installed."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


class Printer:
    """Lines and tables on standard output. Under `as_json`, only `result` prints."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console: Any = None
        if not as_json and wants_rich(sys.stdout):
            from rich.console import Console

            self.console = Console(highlight=False)

    def line(self, text: str = "", style: str | None = None) -> None:
        if self.as_json:
            return
        if self.console is not None:
            self.console.print(text, style=style, markup=False)
        else:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; a cell that says exactly ok, warn or fail is coloured on a terminal."""
        if self.as_json:
            return
        if self.console is None:
            print(plain_table(title, columns, rows), flush=True)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        self.console.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """The outcome of a command as one JSON object, under --json."""
        if self.as_json:
            print(json.dumps(value), flush=True)


class SilentPrinter(Printer):
    """For the processes of a run of which another one speaks."""

    def __init__(self) -> None:
        super().__init__(as_json=True)

    def result(self, value: dict[str, Any]) -> None:
        pass


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as aligned text without colour."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([title, *(line.rstrip() for line in lines)])
