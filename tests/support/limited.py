"""Uses of memsys while the system itself refuses: a full disk, too few descriptors, too large a file, no memory to
lock. Runs in a process of its own, whose limits are nobody else's.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fault_loads import Packing, agree, load_named
from fault_loop import TYPED, fresh_runtime
from watchdog import LIMIT_S


@contextmanager
def limit(which: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (min(value, before[1]) if before[1] >= 0 else value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@contextmanager
def full_disk(folder: Path, free_bytes: int) -> Iterator[None]:
    """All of the folder's own file system but `free_bytes` is taken."""
    assert os.path.ismount(folder), "a disk that others use is not to be filled"
    space = os.statvfs(folder)
    with open(folder / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(space.f_bavail * space.f_frsize - free_bytes, 1))
    try:
        yield
    finally:
        (folder / "filler").unlink()


def scarcities(kind: str, folder: Path) -> list[Any]:
    """Contexts, from nothing left to a little."""
    if kind == "disk":
        return [lambda left=left: full_disk(folder, left << 10) for left in (0, 8, 64, 200, 600, 1500)]
    if kind == "NOFILE":
        in_use = max(map(int, os.listdir("/proc/self/fd"))) + 1
        return [lambda more=more: limit(resource.RLIMIT_NOFILE, in_use + more) for more in range(-2, 8)]
    if kind == "FSIZE":
        return [lambda size=size: limit(resource.RLIMIT_FSIZE, size << 10) for size in (0, 4, 64, 500, 2000)]
    return [lambda size=size: limit(resource.RLIMIT_MEMLOCK, size << 10) for size in (0, 4, 64)]


def main() -> None:
    """Arguments: the load, a folder, the kind, the engine. Prints the findings as JSON."""
    name, folder, kind, engine = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    load = load_named(name, folder)
    told, exact, wrong = Counter(), 0, []
    for place, scarce in enumerate(scarcities(kind, folder)):
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        try:
            with fresh_runtime(engine):
                error = _attempt(load, scarce)
                subject = load.make()
                assert agree(load.use(subject), load.wanted), "the next use is wrong"
                load.settle(subject)
                load.end(subject)
        except Exception as failure:
            wrong.append(f"{kind} {place}: {type(failure).__name__}: {failure}")
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
            gc.collect()
        exact += error is None
        told.update([error] if error else [])
    print(json.dumps({"cases": exact + sum(told.values()) + len(wrong), "exact": exact, "told": told, "wrong": wrong}))


def _attempt(load: Any, scarce: Any) -> str | None:
    make = load.make
    if isinstance(load, Packing):
        load.clear()  # the space of what an earlier call left would be enough
        make = load.clear
    with scarce():
        try:
            assert agree(load.use(make()), load.wanted), "a wrong result was returned"
        except TYPED as error:
            return type(error).__name__
    return None


if __name__ == "__main__":
    main()
