"""The loop: one load, one seam, one kind of fault; its first operation fails, its second, and so on until none is left.

After each fault the result is right to the last bit, or a typed error was raised within the time; and once the fault is
gone, the next use is right and nothing is left behind.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fault_loads import Packing, agree, each_k
from fault_seams import (
    ALLOCATIONS,
    PINS,
    PYTHON_THREADS,
    READS,
    SUBMITS,
    THREADS,
    WRITES,
    Fault,
    counted_thread_starts,
    faulty_output,
)
from watchdog import Hang, Watchdog

import memsys
from memsys import _C, _tensor
from memsys.runtimes import override_runtime

ENGINES = ("threads", "uring", "simulated")
TYPED = (memsys.MemsysError, OSError, MemoryError)


@dataclass
class Cell:
    """What became of all the faults of one kind."""

    cases: int = 0
    exact: int = 0
    told: Counter = field(default_factory=Counter)  # by the error's type


@dataclass
class Found:
    """The table, and what must be empty."""

    cells: dict[tuple[str, str, str, str, str], Cell] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    @property
    def case_count(self) -> int:
        return sum(cell.cases for cell in self.cells.values())

    def table(self) -> str:
        lines = [f"{'load':22} {'engine':10} {'operation':16} {'fault':15} {'span':11} cases exact told as"]
        for (load, engine, operation, kind, span), cell in sorted(self.cells.items()):
            told = ", ".join(f"{count} {name}" for name, count in sorted(cell.told.items()))
            where = f"{load:22} {engine:10} {operation:16} {kind:15} {span:11}"
            lines.append(f"{where} {cell.cases:5} {cell.exact:5} {told}")
        return "\n".join(lines)


@contextmanager
def fresh_runtime(engine: str) -> Iterator[Any]:
    """A runtime that is cold, so that every thread starts and every byte is taken, and that may fail."""
    if engine == "simulated":
        runtime = _C.Runtime(_C.DeviceKind.simulated, seed=11, faults=_C.FaultSeam.faulty)
        backend = _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write))
    else:
        io = _C.IoEngineChoice.__members__[engine]
        runtime, backend = _C.Runtime(_C.DeviceKind.host, io=io, faults=_C.FaultSeam.faulty), None
    override_runtime(runtime, backend)
    try:
        yield runtime
    finally:
        override_runtime(None)


def faults_for(load: Any, engine: str, of_output: list[Fault]) -> list[Fault]:
    """The kinds that can strike this load: what never happens in it has no first operation, and so no case."""
    unseen = getattr(load, "UNSEEN", ())
    reads = [fault for fault in READS if (fault.operation, fault.kind) not in unseen]
    common = [*reads, *WRITES, *SUBMITS, *ALLOCATIONS]
    if engine == "simulated":
        return [*common, *PINS]
    return [*common, *THREADS, *PYTHON_THREADS, *(of_output if isinstance(load, Packing) else ())]


class Loop:
    """All faults of one load under one engine, collected in `found`."""

    def __init__(self, name: str, load: Any, engine: str, found: Found, turn: int | None = None) -> None:
        """turn: None for every k; else a thinned set that changes by turns."""
        self._name, self._load, self._engine, self._found, self._turn = name, load, engine, found, turn

    def run(self) -> None:
        """Stops at the first hang, whose thread may hold anything."""
        with ExitStack() as stack:
            watchdog = stack.enter_context(Watchdog())
            stack.enter_context(counted_thread_starts())
            of_output = stack.enter_context(faulty_output())
            for fault in faults_for(self._load, self._engine, of_output):
                count = watchdog.run(lambda fault=fault: self._count(fault))
                for span in (_C.FaultSpan.once, _C.FaultSpan.persistent):
                    if not self._strike_all(watchdog, fault, span, count):
                        return

    def _count(self, fault: Fault) -> int:
        with fresh_runtime(self._engine) as runtime:
            fault.disarm(runtime)
            subject = self._load.make()
            assert agree(self._load.use(subject), self._load.wanted), f"{self._name} is wrong without any fault"
            count = fault.count(runtime)
            self._load.settle(subject)
            self._load.end(subject)
            return count

    def _strike_all(self, watchdog: Watchdog, fault: Fault, span: Any, count: int) -> bool:
        key = (self._name, self._engine, fault.operation, fault.kind, span.name)
        cell = Cell()
        # A fault may bring more operations about than there are without one: on to the first that sees none.
        at, is_seen = 0, True
        order = iter(each_k(count, self._turn is not None, self._turn or 0))
        while (at := next(order, -1 if self._turn is not None or not is_seen else at + 1)) >= 0:
            case = f"{', '.join(key)}, at {at} of {count}"
            try:
                is_seen = watchdog.run(lambda at=at: self._case(fault, at, span, cell))
            except Hang as hang:
                self._found.hangs.append(f"{case}: {hang}")
                return False
            except Exception as error:
                self._found.wrong.append(f"{case}: {type(error).__name__}: {error}")
                is_seen = at < 2 * count + 10
        if cell.cases:
            self._found.cells[key] = cell
        return True

    def _case(self, fault: Fault, at: int, span: Any, cell: Cell) -> bool:
        """Whether the fault struck."""
        with fresh_runtime(self._engine) as runtime:
            subjects: list[Any] = []
            fault.arm(runtime, at, span)
            try:
                told = self._attempt(subjects)
            finally:
                is_seen = fault.count(runtime) > at
                fault.disarm(runtime)
            gc.collect(0)
            subject = subjects[0] if subjects else self._load.make()
            if subjects:
                self._load.settle(subject)
            assert agree(self._load.use(subject), self._load.wanted), f"the step after {told or 'the fault'} is wrong"
            self._load.settle(subject)
            self._load.end(subject)
        if is_seen:
            cell.cases += 1
            cell.exact += told is None
            cell.told.update([told] if told else [])
        return is_seen

    def _attempt(self, subjects: list[Any]) -> str | None:
        """The name of the error that was told; None if the result is right. Anything else is raised."""
        try:
            subjects.append(self._load.make())
            found = self._load.use(subjects[0])
        except TYPED as error:
            return type(error).__name__
        assert agree(found, self._load.wanted), "a wrong result was returned"
        return None


def check(found: Found) -> None:
    """Says what was wrong first."""
    assert not found.hangs, found.hangs[0]
    assert not found.wrong, f"{len(found.wrong)} wrong of {found.case_count}:\n" + "\n".join(found.wrong[:20])
