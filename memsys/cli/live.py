"""The live view of a training run: one line a step, or, on a terminal, a table that redraws itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memsys.budget import format_bytes
from memsys.cli.console import Printer


@dataclass(frozen=True)
class StepRecord:
    """What one step did. Tiers are the peaks so far; moved bytes are this step's, both directions of the link."""

    step: int
    loss: float
    seconds: float
    tokens: int
    moved_bytes: int
    peak_device_bytes: int
    peak_host_bytes: int
    peak_file_bytes: int
    link_use: float

    def cells(self, steps: int) -> list[str]:
        return [
            f"{self.step + 1}/{steps}",
            f"{self.loss:.4f}",
            f"{self.seconds:.2f} s",
            f"{self.tokens / self.seconds:,.0f}",
            format_bytes(self.peak_device_bytes),
            format_bytes(self.peak_host_bytes),
            format_bytes(self.peak_file_bytes),
            format_bytes(self.moved_bytes),
            f"{self.link_use:.0%}",
        ]


COLUMNS = ("step", "loss", "time", "tokens/s", "device", "host", "file", "moved", "link use")
_WIDTHS = (7, 8, 9, 9, 11, 11, 11, 11, 8)


class LiveView:
    """A context that shows each StepRecord given to `show`."""

    def __init__(self, printer: Printer, steps: int) -> None:
        self.printer = printer
        self.steps = steps
        self.records: list[StepRecord] = []
        self._live: Any = None

    def __enter__(self) -> LiveView:
        if self.printer.console is not None:
            from rich.live import Live

            # Redrawn once a step: a thread that redraws would compete with the training for cores.
            self._live = Live(self._table(), console=self.printer.console, auto_refresh=False)
            self._live.__enter__()
        else:
            self.printer.line(_aligned(COLUMNS))
        return self

    def __exit__(self, *details: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*details)

    def show(self, record: StepRecord) -> None:
        self.records.append(record)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            self.printer.line(_aligned(record.cells(self.steps)))

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table

        title = f"training, step {len(self.records)} of {self.steps}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for record in self.records[-20:]:
            table.add_row(*record.cells(self.steps))
        return table


def _aligned(cells: Any) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
