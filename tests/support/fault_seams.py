"""Where faults go in, and of which kind: each seam counts one kind of operation and makes the k-th of it fail.

Those of a runtime are the faulty backends that the library is shipped with; threads that Python starts, and the calls
of the system by which a packed file is written, are counted where those modules call them.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from memsys import _C
from memsys.weights import journal, output

Arm = Callable[[int, object], None]


class Fault(NamedTuple):
    """`arm(runtime, at, span)` makes the at-th operation fail; `count(runtime)` says how many there were since."""

    operation: str
    kind: str
    arm: Callable[[Any, int, Any], None]
    count: Callable[[Any], int]

    def disarm(self, runtime: Any) -> None:
        self.arm(runtime, -1, _C.FaultSpan.once)


def _io(operation: str, kind: str) -> Fault:
    fault, which = _C.IoFault.__members__[kind], _C.IoOperation.__members__[operation]

    def arm(runtime: Any, at: int, span: Any) -> None:
        runtime.arm_io(fault if at >= 0 else _C.IoFault.none, max(at, 0), span, which)

    return Fault("submit" if kind == "refused" else operation, kind, arm, lambda runtime: runtime.io_attempt_count)


def _counter(operation: str, name: str) -> Fault:
    return Fault(operation, "fails", lambda runtime, at, span: getattr(runtime, f"arm_{name}")(at, span),
                 lambda runtime: getattr(runtime, f"{name}_attempt_count"))  # fmt: skip


IO_KINDS = ("no_space", "io_error", "interrupted", "again", "short_transfer", "corrupt", "truncated")
READS = [_io("read", kind) for kind in IO_KINDS]
WRITES = [_io("write", kind) for kind in IO_KINDS]
SUBMITS = [_io("any", "refused")]
ALLOCATIONS = [_counter("allocation", "memory")]
PINS = [_counter("pin", "pin")]
THREADS = [_counter("thread", "start")]


class _Count:
    """As a fault counter of the core, for what Python does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.arm(-1, _C.FaultSpan.once)

    def arm(self, at: int, span: Any) -> None:
        self._at, self._span, self.attempts = at, span, 0

    def next_fails(self) -> bool:
        with self._lock:
            attempt, self.attempts = self.attempts, self.attempts + 1
        if self._at < 0:
            return False
        return attempt == self._at if self._span is _C.FaultSpan.once else attempt >= self._at


_python_threads = _Count()
PYTHON_THREADS = [
    Fault("python thread", "fails", lambda _, at, span: _python_threads.arm(at, span),
          lambda _: _python_threads.attempts)
]  # fmt: skip


@contextlib.contextmanager
def counted_thread_starts() -> Iterator[None]:
    """While it lasts, PYTHON_THREADS works: starting fails as it does where the system gives no thread."""
    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
    start = getattr(threading, name)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if _python_threads.next_fails():
            raise RuntimeError("can't start new thread")
        return start(*arguments, **keywords)

    setattr(threading, name, counted)
    try:
        yield
    finally:
        setattr(threading, name, start)


# The calls of the system behind a file that is written: all of them count together, but for the three with kinds of
# their own.
_ANY = ("open", "ftruncate", "posix_fallocate", "pwrite", "preadv", "fdatasync", "fsync", "rename", "fstat", "fstatvfs",
        "write", "readall", "truncate")  # fmt: skip
_CALLS = {
    "write": ("pwrite", "write"),
    "read": ("preadv", "readall"),
    "sync": ("fdatasync", "fsync"),
    "file call": _ANY,
}
_ERRNOS = {"no_space": errno.ENOSPC, "io_error": errno.EIO, "interrupted": errno.EINTR, "again": errno.EAGAIN}


class FaultySystem:
    """Stands where a module says `os`: the calls in `_CALLS` are counted and may fail, all others pass through."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._count = _Count()
        self._calls: tuple[str, ...] = ()
        self._kind = ""

    def arm(self, operation: str, kind: str, at: int, span: Any) -> None:
        self._calls, self._kind = _CALLS[operation], kind
        self._count.arm(at, span)

    @property
    def attempts(self) -> int:
        return self._count.attempts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self.counted(name, found) if name in _ANY else found

    def counted(self, name: str, call: Callable) -> Callable:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if name not in self._calls or not self._count.next_fails():
                return call(*arguments, **keywords)
            if self._kind in _ERRNOS:
                raise OSError(_ERRNOS[self._kind], "a fault was injected")
            return self._altered(name, call, *arguments)

        return counted

    def _altered(self, name: str, call: Callable, *arguments: Any) -> Any:
        """A short transfer, or one with a bit flipped."""
        if name == "preadv":
            descriptor, (view,), offset = arguments
            if self._kind == "short_transfer":
                return call(descriptor, [view[: (len(view) + 1) // 2]], offset)
            moved = call(*arguments)
            view[moved // 2] ^= 0x10
            return moved
        place = {"pwrite": 1, "write": 0}.get(name)
        if place is None:
            return call(*arguments)
        view = bytearray(arguments[place])
        if self._kind == "short_transfer":
            view = view[: (len(view) + 1) // 2]
        elif view:
            view[len(view) // 2] ^= 0x10
        return call(*arguments[:place], view, *arguments[place + 1 :])


class _FaultyRaw:
    """A raw file whose reads and writes count too."""

    def __init__(self, inner: Any, system: FaultySystem) -> None:
        self._inner, self._system = inner, system

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._system.counted(name, found) if name in ("write", "readall", "truncate") else found


@contextlib.contextmanager
def faulty_output() -> Iterator[list[Fault]]:
    """While it lasts, the faults it gives strike the system's calls behind memsys.pack_weights."""
    system = FaultySystem(output.os)
    before = output.os, journal.os
    output.os = journal.os = system

    def opened(*arguments: Any, **keywords: Any) -> _FaultyRaw:
        return _FaultyRaw(open(*arguments, **keywords), system)

    journal.open = opened
    kinds = {"write": (*_ERRNOS, "short_transfer", "corrupt"), "read": (*_ERRNOS, "short_transfer", "corrupt"),
             "sync": tuple(_ERRNOS), "file call": tuple(_ERRNOS)}  # fmt: skip
    try:
        yield [_system_fault(system, operation, kind) for operation, names in kinds.items() for kind in names]
    finally:
        output.os, journal.os = before
        del journal.open


def _system_fault(system: FaultySystem, operation: str, kind: str) -> Fault:
    return Fault(f"output {operation}", kind, lambda _, at, span: system.arm(operation, kind, at, span),
                 lambda _: system.attempts)  # fmt: skip
