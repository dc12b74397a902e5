"""A thousand steps that end well and a thousand that fail: descriptors, threads, pinned bytes, files and memory stay
where they were after the first few."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from built import needs_memsys

needs_memsys()

import proof  # noqa: E402
from fault_loads import Streaming, Training, agree  # noqa: E402
from fault_loop import TYPED, fresh_runtime  # noqa: E402

from memsys import _C  # noqa: E402

pytestmark = [pytest.mark.proof, pytest.mark.filterwarnings("ignore:spill_dir")]

WARM_UP = 20
SLOPE_BYTES = 1024
FAULTS = ("io_error", "no_space", "corrupt", "truncated", "refused")


def held(folder: Path) -> dict[str, int]:
    """What a step must give back: all counted by the system, not by memsys. A model and its session are a cycle."""
    gc.collect()
    locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
            "python threads": threading.active_count(), "pinned bytes": int(locked.split()[1]) * 1024,
            "files": len(list(folder.rglob("*")))}  # fmt: skip


def slope_of(sizes: list[int]) -> float:
    """Bytes a step, of the straight line through the last half."""
    tail = sizes[len(sizes) // 2 :]
    return float(np.polyfit(np.arange(len(tail)), np.array(tail, dtype=float), 1)[0])


def run_steps(step: Callable[[int], None], settle: Callable[[], None], count: int, folder: Path) -> dict[str, Any]:
    process, sizes = psutil.Process(), []
    for index in range(WARM_UP):
        step(index)
    settle()
    before = held(folder)
    for index in range(count):
        step(index)
        if index % 10 == 0:
            gc.collect()
        sizes.append(process.memory_info().rss)
    settle()
    end = time.monotonic() + 5
    while (after := held(folder)) != before and time.monotonic() < end:
        time.sleep(0.05)
    return {"steps": count, "deltas": {name: after[name] - before[name] for name in before},
            "slope_bytes": slope_of(sizes), "rss_bytes": [sizes[0], sizes[-1]]}  # fmt: skip


def good_steps(load: Any, count: int, folder: Path, engine: str) -> dict[str, Any]:
    """Steps of one subject."""
    with fresh_runtime(engine):
        subject = load.make()

        def step(_: int) -> None:
            assert agree(load.use(subject), load.wanted)

        found = run_steps(step, lambda: load.settle(subject), count, folder)
        load.end(subject)
    return found


def failing_steps(load: Any, count: int, folder: Path, engine: str) -> dict[str, Any]:
    """Steps of one subject, each of which meets a disk that fails for good from some read on."""
    told = 0
    with fresh_runtime(engine) as runtime:
        subject = load.make()
        load.use(subject)

        def step(index: int) -> None:
            nonlocal told
            fault = _C.IoFault.__members__[FAULTS[index % len(FAULTS)]]
            runtime.arm_io(fault, index % 3, _C.FaultSpan.persistent, _C.IoOperation.read)
            try:
                assert agree(load.use(subject), load.wanted)
            except TYPED:
                told += 1
            finally:
                runtime.arm_io(_C.IoFault.none, 0)

        found = run_steps(step, lambda: load.settle(subject), count, folder)
        assert agree(load.use(subject), load.wanted)
        load.settle(subject)
        load.end(subject)
    return {**found, "told": told}


def whole_lives(load: Any, count: int, folder: Path, engine: str) -> dict[str, Any]:
    """A runtime, a subject, a step and an end, again and again."""

    def step(_: int) -> None:
        with fresh_runtime(engine):
            subject = load.make()
            load.use(subject)
            load.settle(subject)
            load.end(subject)

    return run_steps(step, lambda: None, count, folder)


KINDS = {"good steps": good_steps, "failing steps": failing_steps, "whole lives": whole_lives}
LOADS = {"train": lambda folder: Training(folder, "file"), "stream": Streaming}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_hundred(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "memsys")
    found = KINDS[kind](LOADS["train"](tmp_path), 100, tmp_path, "threads")
    assert not any(found["deltas"].values()), found
    if kind == "failing steps":
        assert found["told"] > 90


def test_a_leak_is_seen(tmp_path: Path) -> None:
    """What is kept on purpose shows in every count, so that a zero above means something."""
    kept: list[Any] = []

    def step(index: int) -> None:
        kept.append((os.open(tmp_path, os.O_RDONLY), bytearray(os.urandom(64 << 10))))
        (tmp_path / str(len(kept))).touch()

    found = run_steps(step, lambda: None, 100, tmp_path)
    for descriptor, _ in kept:
        os.close(descriptor)
    assert (found["deltas"]["descriptors"], found["deltas"]["files"]) == (100, 100)
    assert found["slope_bytes"] > 32 << 10


@pytest.mark.nightly
@pytest.mark.timeout(2 * 3600)
def test_a_thousand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "memsys")
    begin, found = time.monotonic(), {}
    for name, make in LOADS.items():
        for kind, run in KINDS.items():
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir()
            found[f"{name}, {kind}"] = run(make(folder), 1000, folder, "threads")
    deltas = {name: one["deltas"] for name, one in found.items() if any(one["deltas"].values())}
    steepest = max(one["slope_bytes"] for one in found.values())
    is_met = not deltas and steepest < SLOPE_BYTES
    proof.record(
        "R5", "leaks", measure="what 1,000 good steps, 1,000 failing ones and 1,000 whole lives leave behind",
        figure=f"{len(deltas)} of {len(found)} runs left a descriptor, thread, pinned byte or file; steepest RSS "
               f"slope {steepest:.0f} B a step over the last 500",
        target="0 left; slope under 1 KiB a step", is_met=is_met, seconds=time.monotonic() - begin, runs=found,
    )  # fmt: skip
    assert not deltas, deltas
    assert steepest < SLOPE_BYTES, {name: one["slope_bytes"] for name, one in found.items()}
