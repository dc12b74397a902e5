"""Ends processes in the middle of what they do, and looks at what they leave. Runs in a process of its own: it forks
one child after another from a Python that has everything imported, so that hundreds of deaths take seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fault_loads import LOADS, Packing, agree, load_named

REST_S = 2.0  # in which the kernel gives back what a dead process held


def main() -> None:
    """Arguments: the load, a folder on a disk of its own or not, how often, a seed. Prints the findings as JSON."""
    name, folder, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)  # a pool of OpenMP does not survive fork()
    assert name in LOADS
    load = load_named(name, folder)
    print(json.dumps(_kill_often(load, folder, count, random.Random(seed))))


def _kill_often(load: Any, folder: Path, count: int, chance: random.Random) -> dict[str, Any]:
    longest_s = _time_of_use(load)
    if isinstance(load, Packing):
        load.make()  # what an earlier interruption left, to go on from
    before, left, held, wrong = _state(folder), [], [], []
    resumed = 0
    for _ in range(count):
        status = _killed_after(load, chance.uniform(0, 1.5 * longest_s))
        if status != -signal.SIGKILL:
            wrong.append(f"the child ended by itself: {status}")
        if isinstance(load, Packing):
            resumed += any(one.name.endswith(".partial") for one in load._path.parent.iterdir())
            if (status := _in_child(lambda: _pack_again(load))) != 0:
                wrong.append(f"packing after a death: {status}")
            load.make()
        end = time.monotonic() + REST_S
        while (now := _state(folder)) != before and time.monotonic() < end:
            time.sleep(0.002)
        if now[0] != before[0]:
            left.append(sorted(set(now[0]) - set(before[0])))
        if now[1] > before[1]:
            held.append(now[1] - before[1])
        before = now
    return {"kills": count, "files_left": left, "bytes_held": held, "wrong": wrong, "resumed": resumed,
            "longest_s": longest_s}  # fmt: skip


def _state(folder: Path) -> tuple[list[str], int]:
    """The names below the folder, and what is used of its file system: exact only if nobody else writes there."""
    names = sorted(str(one) for one in folder.rglob("*"))
    space = os.statvfs(folder)
    return names, (space.f_blocks - space.f_bfree) * space.f_frsize if os.path.ismount(folder) else 0


def _time_of_use(load: Any) -> float:
    def use() -> None:
        begin = time.monotonic()
        _use_once(load)
        os.write(write_end, str(time.monotonic() - begin).encode())

    read_end, write_end = os.pipe()
    assert _in_child(use) == 0, "the load is wrong without any death"
    with os.fdopen(read_end) as pipe:
        os.close(write_end)
        return float(pipe.read())


def _use_once(load: Any) -> None:
    subject = load.make()
    for _ in range(2):
        assert agree(load.use(subject), load.wanted)
    load.settle(subject)
    load.end(subject)


def _pack_again(load: Packing) -> None:
    assert agree(load.use(load._path), load.wanted)
    load.end(load._path)


def _in_child(call: Any) -> int:
    child = os.fork()
    if child == 0:
        _run_and_exit(call)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_and_exit(call: Any) -> None:
    status = 1
    try:
        call()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def _killed_after(load: Any, seconds: float) -> int:
    read_end, write_end = os.pipe()

    def use_for_ever() -> None:
        os.write(write_end, b".")
        while True:
            _use_once(load)

    child = os.fork()
    if child == 0:
        _run_and_exit(use_for_ever)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
