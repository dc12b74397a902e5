"""Ctrl-C at any moment of a use: by a timer, as a signal comes, or at one given moment of those at which Python looks.
Runs in a process of its own, whose interrupts are nobody else's.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from fault_loads import agree, load_named
from watchdog import LIMIT_S

import memsys

FOLDER = os.path.dirname(memsys.__file__) + os.sep


class Tracer:
    """Raises KeyboardInterrupt at the k-th moment at which Python looks for signals in memsys's code: a call has begun,
    or one of C has come back. Counts them all with k = -1."""

    def __init__(self, at: int = -1) -> None:
        self.count, self.place = 0, ""
        self._at = at

    def moment(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(FOLDER):
            return
        self.count += 1
        if self.count - 1 == self._at:
            self.place = f"{frame.f_code.co_filename.removeprefix(FOLDER)}:{frame.f_lineno}"
            sys.setprofile(None)
            raise KeyboardInterrupt

    def __enter__(self) -> Tracer:
        sys.setprofile(self.moment)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


class Timer:
    """SIGINT's own handler, called by an alarm `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.fired = False
        self.place = ""
        self._seconds = seconds

    def _fire(self, number: int, frame: FrameType | None) -> None:
        self.fired = True
        self.place = "" if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        signal.default_int_handler(number, frame)

    def __enter__(self) -> Timer:
        signal.signal(signal.SIGALRM, self._fire)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Arguments: the load, a folder, "timer" or "moments", how often, a seed. Prints the findings as JSON."""
    name, folder, how, count, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    swallowed: list[str] = []
    sys.unraisablehook = lambda told: swallowed.append(f"{told.exc_type.__name__} in {told.object!r:.80}")
    load, chance = load_named(name, folder), random.Random(seed)
    found: dict[str, Any] = {"interrupts": 0, "after_the_end": 0, "swallowed": 0, "wrong": []}
    for at in _moments(load, how, count, chance):
        tool = Tracer(at) if how == "moments" else Timer(at)
        error = _one(load, tool, swallowed, found)
        if error:
            found["wrong"].append(f"{name}, {how} at {at} ({tool.place}): {error}")
    print(json.dumps(found))


def _moments(load: Any, how: str, count: int, chance: random.Random) -> list[Any]:
    subject = load.make()
    load.use(subject)
    with Tracer() as tracer:
        begin = time.monotonic()
        load.use(subject) if how == "moments" else None
    if how == "timer":
        load.use(subject)
        seconds = time.monotonic() - begin
    load.settle(subject)
    load.end(subject)
    if how == "timer":
        return [max(1e-5, chance.uniform(0, 1.2 * seconds)) for _ in range(count)]
    moments = range(tracer.count)
    return list(moments) if count >= len(moments) else sorted(chance.sample(moments, count))


def _one(load: Any, tool: Any, swallowed: list[str], found: dict[str, Any]) -> str | None:
    """What was wrong with one interrupt, if anything."""
    subject = load.make()
    arrived = False
    try:
        with tool:
            load.use(subject)
    except KeyboardInterrupt:
        arrived = True
    except Exception as error:
        return f"{type(error).__name__} instead of KeyboardInterrupt: {error}"
    has_struck = bool(tool.place) or getattr(tool, "fired", False)
    gc.collect()
    if swallowed:  # Python itself tells of those that come in a finalizer, and goes on
        found["swallowed"] += 1
        swallowed.clear()
    elif has_struck and not arrived:
        return "the interrupt did not arrive"
    found["interrupts" if arrived else "after_the_end"] += 1
    try:
        # In this thread, as a script does; a hang ends the process with every stack on stderr.
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        _next(load, subject)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _next(load: Any, subject: Any) -> None:
    load.settle(subject)
    assert agree(load.use(subject), load.wanted), "the next step is wrong"
    load.settle(subject)
    load.end(subject)


if __name__ == "__main__":
    main()
