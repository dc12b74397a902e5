"""What a proof writes down: one line of the scoreboard, as a JSON file that the README's table is made from.

A proof runs small in CI and in earnest in the nightly sweep; only a run with MEMSYS_PROOF_DIR set leaves its record.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def record(line: str, name: str, *, measure: str, figure: str, target: str, is_met: bool, seconds: float,
           **facts: Any) -> None:  # fmt: skip
    """Writes $MEMSYS_PROOF_DIR/<line>-<name>.json; does nothing where the variable is not set.

    line: "R1" to "R12". measure, figure, target: a phrase each, as the table shows them. facts: whatever a reader needs
    to run it again and compare (seeds, counts, names left out with their reasons).
    """
    folder = os.environ.get("MEMSYS_PROOF_DIR")
    if folder is None:
        return
    found = {"line": line, "name": name, "measure": measure, "figure": figure, "target": target, "is_met": is_met,
             "seconds": round(seconds, 1), "facts": facts, "machine": machine(), "commit": commit(),
             "date": datetime.datetime.now(datetime.UTC).date().isoformat()}  # fmt: skip
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{line}-{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "cpu_count": os.cpu_count(), "python": platform.python_version(),
            "torch": torch.__version__}  # fmt: skip


def commit() -> str:
    """The commit that was run, with a + if the tree has changed since; empty outside of a clone."""
    try:
        told = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()
