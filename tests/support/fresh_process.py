"""Runs a script in a Python of its own, with this memsys and these helpers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import memsys

PATHS = (Path(memsys.__file__).resolve().parents[1], Path(__file__).resolve().parent)
LIMIT_S = 150


def output_of(script: str, *arguments: object) -> str:
    """What the script prints; fails with what it complained of."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout
