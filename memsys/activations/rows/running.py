"""Runs of a block that memsys makes for itself: in them no row segment begins, and one may end early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _ThreadState(threading.local):
    is_apart = False


_state = _ThreadState()


class Enough(Exception):
    """Ends a run whose remaining results nobody wants."""


def is_apart() -> bool:
    """Whether this thread is inside such a run."""
    return _state.is_apart


@contextmanager
def apart() -> Iterator[None]:
    """A run of memsys's own."""
    before, _state.is_apart = _state.is_apart, True
    try:
        yield
    finally:
        _state.is_apart = before
