"""Training while operations fail at random: a twin without memsys says what every step must give.

Each read and write of the core fails with a small probability, in a kind drawn from the seed, and each request for
memory, of which there are few, with a larger one. A step gives the right bits or raises one of memsys's errors; after
an error the same step, without faults, is right.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from gradients import DROPPED, TIERS, assert_idle, assert_same, offloaded, small_input, small_model, step

import memsys
from memsys import _C, runtimes

KINDS = [fault for fault in _C.IoFault.__members__ if fault != "none"]
# What is trained in turn: every road out of memory, and each with checksums of host copies too.
WAYS: list[dict[str, Any]] = [
    {"policy": TIERS["file"]},
    {"policy": TIERS["host"], "verify": True},
    {"policy": DROPPED},
    {"policy": "auto", "device_budget": "1MiB"},
    {"policy": TIERS["file"], "host_budget": "1MiB", "verify": True},
]
STEPS_A_WAY = 250


@dataclass
class Told:
    """What happened. `fired`: faults by kind; `errors`: those that reached the script, by class; `descriptor_growth`,
    `thread_growth`: from the end of the first whole cycle of ways to that of the last."""

    seed: int
    rate: float
    memory_rate: float = 0.1
    seconds: float = 0.0
    step_count: int = 0
    fired: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    cycle_count: int = 0
    descriptor_growth: int = 0
    thread_growth: int = 0


class Faults:
    """Has one attempt in 1 / rate fail, by arming the next one that is due for the step that follows."""

    def __init__(self, runtime: _C.Runtime, draw: random.Random, told: Told) -> None:
        self._runtime, self._draw, self._told = runtime, draw, told
        self._io_gap, self._memory_gap = self._gap(told.rate), self._gap(told.memory_rate)
        self._kind = draw.choice(KINDS)

    def _gap(self, rate: float) -> int:
        return int(math.log(1.0 - self._draw.random()) / math.log(1.0 - rate))

    def arm(self) -> None:
        self._runtime.arm_io(_C.IoFault.__members__[self._kind], self._io_gap, _C.FaultSpan.once)
        self._runtime.arm_memory(self._memory_gap, _C.FaultSpan.once)

    def disarm(self) -> None:
        """Notes what fired."""
        io, memory = self._runtime.io_attempt_count, self._runtime.memory_attempt_count
        self._runtime.arm_io(_C.IoFault.none, 0, _C.FaultSpan.once)
        self._runtime.arm_memory(-1, _C.FaultSpan.once)
        self._io_gap -= io
        self._memory_gap -= memory
        if self._io_gap < 0:
            self._told.fired[self._kind] += 1
            self._io_gap, self._kind = self._gap(self._told.rate), self._draw.choice(KINDS)
        if self._memory_gap < 0:
            self._told.fired["allocation"] += 1
            self._memory_gap = self._gap(self._told.memory_rate)


def train(seconds: float, seed: int, folder: Path, rate: float = 1e-3, steps_a_way: int = STEPS_A_WAY) -> Told:
    """Trains for that long, one way after the other; raises AssertionError at the first wrong bit."""
    told, draw, begin = Told(seed, rate), random.Random(seed), time.monotonic()
    process, turn = psutil.Process(), 0
    before: tuple[int, int] | None = None
    try:
        while time.monotonic() - begin < seconds:
            io = (_C.IoEngineChoice.threads, _C.IoEngineChoice.automatic)[turn // len(WAYS) % 2]
            runtime = _C.Runtime(_C.DeviceKind.host, io=io, faults=_C.FaultSeam.faulty)
            runtimes.override_runtime(runtime)
            _train_one_way(WAYS[turn % len(WAYS)], Faults(runtime, draw, told), told, folder, steps_a_way)
            turn += 1
            if turn % (2 * len(WAYS)) == 0:  # every way over both engines; what is made once has been
                held = process.num_fds(), len(os.listdir("/proc/self/task"))
                before = before or held
                told.descriptor_growth, told.thread_growth = held[0] - before[0], held[1] - before[1]
                told.cycle_count += 1
    finally:
        runtimes.override_runtime(None)
    told.seconds = time.monotonic() - begin
    return told


def _train_one_way(options: dict[str, Any], faults: Faults, told: Told, folder: Path, steps: int) -> None:
    plain, moved = small_model(), offloaded(small_model(), folder, **options)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (plain, moved)]
    for _ in range(steps):
        x = small_input(told.step_count)
        wanted = step(plain, x)
        faults.arm()
        try:
            found = step(moved, x)
        except memsys.MemsysError as error:
            told.errors[type(error).__name__] += 1
            found = None
        faults.disarm()
        if found is None:
            found = step(moved, x)
        assert_same(found, wanted)
        for optimizer in optimizers:
            optimizer.step()
        told.step_count += 1
    assert_idle(moved)
    assert_same(moved.parameters(), plain.parameters())
    memsys.restore(moved)
