"""Several ways of training, each in a fresh process, one step of each in turn: a slow minute then slows them all.

A busy machine's speed changes by tens of per cent within seconds, so whole runs one after the other cannot tell a
ratio of 1.05 from 1.15; steps side by side can. While one process steps the others sleep.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memsys.cli.setting import Setting


class MeasureError(RuntimeError):
    """A worker process failed; the message carries its last line."""


class Worker:
    """One process of memsys.cli.measure; as a context manager it ends the process, whatever happened."""

    def __init__(self, setting: Setting, mode: str, steps: int) -> None:
        self.mode = mode
        command = [sys.executable, "-P", "-m", "memsys.cli.measure", "--mode", mode, "--steps", str(steps)]
        # -P and the path: a source folder in the current directory must not stand in for the memsys that runs here.
        package_folder = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
        # A pipe that nobody reads would fill up and stop the worker.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  __exit__ closes it
        self._process = subprocess.Popen(
            command + setting.to_argv(),
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def read(self) -> dict[str, Any]:
        """The next thing the worker tells. Raises MeasureError if it ended without."""
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or ["no output"])[-1]
            raise MeasureError(f"measuring {self.mode} ended with status {status}: {last}")
        return json.loads(line)

    def step(self) -> None:
        """Has the worker do one step, and waits for it."""
        with contextlib.suppress(BrokenPipeError):  # read() says why the worker is gone
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        self.read()


def measure_in_turns(setting: Setting, modes: Sequence[str], steps: int = 3) -> dict[str, dict[str, Any]]:
    """What `measure` returns for each mode, each in a fresh process, with this very memsys.

    One step of each in turn, in the opposite order every other turn. Raises MeasureError.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for mode in modes:
            worker = stack.enter_context(Worker(setting, mode, steps))
            worker.read()  # built: one after the other, so that none slows another's start
            workers.append(worker)
        for turn in range(steps + 1):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                worker.step()
        return {worker.mode: worker.read() for worker in workers}
