"""Runs a script in fresh processes: plain, with memsys, and plain again where the two disagree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memsys.cli.script.gradients import Place, read_kind

_PACKAGE_FOLDER = str(Path(__file__).resolve().parents[3])
# The memsys that runs here, whatever else the script's folder or the current one holds.
_START = (
    "import sys; folder = sys.argv.pop(1); folder in sys.path or sys.path.insert(0, folder); "
    "from memsys.cli.script.child import main; main(sys.argv[1:])"
)
_SHOWN_LINES = 12


@dataclass
class Script:
    """What is run, and how: options of memsys.offload, and after how many steps each run is ended."""

    path: str
    arguments: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    step_limit: int | None = None


@dataclass
class Ended:
    """A run that is over. `end`: its last line, or None if it did not come to its end; `output`: its last lines."""

    record: Path
    kept: Path
    status: int
    end: dict[str, Any] | None
    output: str

    @property
    def is_good(self) -> bool:
        return self.status == 0 and self.end is not None


class Runs:
    """Runs of one script, and a folder for what they leave; a context manager, which removes it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._folder = tempfile.TemporaryDirectory(prefix="memsys-verify-")
        self._count = 0

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def run(self, mode: str, *, expected: Path | None = None, keep: Place | None = None) -> Ended:
        """mode: see modes.py. expected, keep: see GradientRecord."""
        place = Path(self._folder.name) / str(self._count)
        self._count += 1
        record, kept = place.with_suffix(".jsonl"), place.with_suffix(".bytes")
        run = {"mode": mode, "record": str(record), "kept": str(kept), "options": self._script.options,
               "expected": str(expected) if expected else None, "step_limit": self._script.step_limit,
               "keep": [keep.step, keep.position] if keep else None}  # fmt: skip
        command = [sys.executable, "-P", "-c", _START, _PACKAGE_FOLDER, json.dumps(run), self._script.path]
        with open(place.with_suffix(".txt"), "w+", errors="replace") as output:
            status = subprocess.run(command + self._script.arguments, stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT, env=os.environ, check=False).returncode  # fmt: skip
            output.seek(0)
            last = "".join(output.readlines()[-_SHOWN_LINES:])
        ends = read_kind(record, "end") if record.exists() else []
        return Ended(record, kept, status, ends[0] if ends else None, last)
