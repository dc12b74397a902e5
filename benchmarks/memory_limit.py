"""A memory limit for one process and its page cache: a control group of its own (version 1 or 2), for the time of use.

RLIMIT_AS would count what is mapped and not what is in memory; only a control group also bounds the page cache.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_TOP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[LimitedGroup]:
    """A control group of at most `limit_bytes` of memory, page cache included; it ends with the context.

    Raises:
        OSError: control groups can't be made here (they want root, or a delegated group).
    """
    is_second = (_TOP / "cgroup.controllers").exists()
    folder = (_TOP if is_second else _TOP / "memory") / f"memsys-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        group = LimitedGroup(folder, is_second)
        group.write("memory.max" if is_second else "memory.limit_in_bytes", limit_bytes)
        yield group
    finally:
        _remove(folder)


class LimitedGroup:
    """What a process joins; asked afterwards how much it took."""

    def __init__(self, folder: Path, is_second: bool) -> None:
        self._folder = folder
        self._is_second = is_second

    def write(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))

    def command(self, words: list[str]) -> list[str]:
        """The command, run inside the group from its first page on."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *words]

    def peak_bytes(self) -> int:
        """The most that was charged at once, page cache included."""
        return int((self._folder / ("memory.peak" if self._is_second else "memory.max_usage_in_bytes")).read_text())


def _remove(folder: Path) -> None:
    # A process that has ended may be accounted for a moment longer.
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except OSError:
            time.sleep(0.1)
