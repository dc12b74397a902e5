"""One seed, one walk through the engine: saved blocks on several streams go out and come back in an order drawn from
the seed, without torch, so that many thousand schedules can be tried; every byte that comes back is compared.

The walk does what the hooks do (order the source's stream, or hold the source until it has left, or keep it), and what
programs do (several streams, each ordered after another where a block crosses).
"""

from __future__ import annotations

import ctypes
import random
from typing import Any, NamedTuple

import memsys
from memsys import _C

SIZES = (1, 96, 4099)
STEPS = (8, 28)
HOST_BYTES = 1 << 20


class Saved(NamedTuple):
    block: Any
    pattern: bytes


class Walk:
    def __init__(self, seed: int, spill_folder: str, step_count: int | None = None) -> None:
        self.chance = random.Random(seed)
        self.runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
        self.store = _C.TensorStore(
            runtime=self.runtime, spill_folder=spill_folder, device_budget_bytes=-1, host_budget_bytes=HOST_BYTES,
            disk_budget_bytes=HOST_BYTES, check_host_copies=self.chance.random() < 0.3,
        )  # fmt: skip
        self.streams = [
            0,
            *(self.runtime.create_stream(f"compute {name}") for name in "ab"[: self.chance.randrange(3)]),
        ]
        self.step_count = self.chance.randint(*STEPS) if step_count is None else step_count
        self.breath = self.chance.choice((0, 2, 5))
        self.stream = 0
        self.saved: list[Saved] = []
        self.held: list[tuple[Any, int, int, int]] = []  # sources yet to leave: block, address, bytes, stream
        self.kept: list[tuple[int, int, int]] = []

    def run(self) -> str:
        """Empty, or what came back wrong. Raises OrderError for a missing edge."""
        for _ in range(self.step_count):
            self.stream = self._next_stream()
            self._breathe()
            self._release()
            if self.saved and self.chance.random() < 0.5:
                wrong = self._bring_back()
                if wrong:
                    return wrong
            else:
                self._put_away()
        self.saved.clear()
        self.store.drain()
        self._release()
        for address, bytes_, stream in self.kept:
            self.runtime.free(address, bytes_, stream)
        self.runtime.create_stream("end")  # raises what a free has found
        used = self.store.device_budget.used_bytes
        return f"{used} bytes of the device budget are left behind" if used else ""

    def _next_stream(self) -> int:
        stream = self.chance.choice(self.streams)
        if stream != self.stream and self.chance.random() < 0.7:
            self.runtime.follow(stream, self.stream)
        return stream

    def _breathe(self) -> None:
        if self.breath and self.chance.randrange(self.breath) == 0:
            self.runtime.step(self.chance.randrange(1, 8))

    def _put_away(self) -> None:
        bytes_ = self.chance.choice(SIZES)
        pattern = self.chance.randbytes(bytes_)
        source = self.runtime.allocate(bytes_, self.stream)
        ctypes.memmove(source, pattern, bytes_)
        self.runtime.note_use(source, bytes_, self.stream, _C.Use.write)
        self._breathe()
        tier = self.chance.choice((_C.Tier.pageable, _C.Tier.file))
        block = self.store.swap_out(source, bytes_, self.stream, tier)
        self.saved.append(Saved(block, pattern))
        way = self.chance.choice(("ordered", "held", "kept"))
        if way == "ordered" and self.store.order_source(block, self.stream):
            self.runtime.free(source, bytes_, self.stream)
        elif way == "kept":
            self.kept.append((source, bytes_, self.stream))
        else:
            self.held.append((block, source, bytes_, self.stream))

    def _release(self) -> None:
        gone = [one for one in self.held if one[0].has_left]
        self.held = [one for one in self.held if not one[0].has_left]
        for _, address, bytes_, stream in gone:
            self.runtime.free(address, bytes_, stream)

    def _bring_back(self) -> str:
        index = self.chance.randrange(len(self.saved))
        block, pattern = self.saved[index] if self.chance.random() < 0.3 else self.saved.pop(index)
        bytes_ = len(pattern)
        target = self.runtime.allocate(bytes_, self.stream)
        arrival = self.store.swap_in(block, target, self.stream)
        self._breathe()
        self.store.arrive(arrival, self.stream)
        self.runtime.note_use(target, bytes_, self.stream, _C.Use.read)
        found = ctypes.string_at(target, bytes_)
        self.runtime.free(target, bytes_, self.stream)
        return "" if found == pattern else f"a block of {bytes_} bytes came back with other bytes"


def run(seed: int, spill_folder: str, step_count: int | None = None) -> tuple[str, str, int]:
    """(kind, message, digest); kind "" for a clean walk, else order or bytes."""
    walk = Walk(seed, spill_folder, step_count)
    try:
        wrong = walk.run()
        kind, message = ("bytes", wrong) if wrong else ("", "")
    except memsys.OrderError as error:
        kind, message = "order", str(error)
        walk.saved.clear()
        while True:
            try:
                walk.store.drain()
                walk.runtime.create_stream("end")
                break
            except memsys.OrderError:
                continue
    return kind, message, walk.runtime.schedule_digest
