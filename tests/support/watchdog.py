"""Runs calls on a thread of its own and says so, with every thread's stack, when one does not come back in time."""

from __future__ import annotations

import faulthandler
import queue
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 10.0


class Hang(AssertionError):
    """A call took longer than the limit. Its thread is left behind: nothing can end it."""


class Watchdog:
    """One thread for all the calls, as a training script has; a context manager that ends it."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="watched", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)

    def run(self, call: Callable[[], Any]) -> Any:
        """What the call returns or raises. Raises Hang, with the stacks."""
        self._calls.put(call)
        try:
            value, error = self._ends.get(timeout=self._limit_s)
        except queue.Empty:
            raise Hang(f"no end within {self._limit_s} s\n{stacks()}") from None
        if error is not None:
            raise error
        return value

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                end = call(), None
            except BaseException as error:
                end = None, error
            del call
            self._ends.put(end)
            del end  # what it holds is the caller's to drop


def stacks() -> str:
    """Python's stack of every thread, then the name of each thread of the process and where the kernel holds it."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        python = file.read()
    lines = []
    for task in sorted(Path("/proc/self/task").iterdir()):
        try:
            lines.append(f"{task.name} {(task / 'comm').read_text().strip()} {(task / 'wchan').read_text()}")
        except OSError:
            continue  # it has just ended
    return python + "\n".join(lines)
