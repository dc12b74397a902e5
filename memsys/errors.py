"""The errors of memsys: each is a MemsysError and also Python's own kind, so that `except MemoryError` works.

Every message names what was asked, what was found, and one remedy.
"""

from __future__ import annotations


class MemsysError(Exception):
    """Base of every error that memsys raises."""


class BudgetError(MemsysError, MemoryError):
    """A budget, or the memory behind it, is exhausted."""


class SpillError(MemsysError, OSError):
    """The system refused an operation on a file; `errno` says why."""


class CorruptionError(MemsysError, RuntimeError):
    """Bytes came back other than they went; nothing was returned."""


class InputError(MemsysError, ValueError):
    """An argument makes no sense."""


class RangeError(MemsysError, IndexError):
    """An index points outside the table; nothing was written."""


class DtypeError(MemsysError, TypeError):
    """An argument is of a type, or a tensor of a dtype, that makes no sense there."""


class DeviceError(MemsysError, RuntimeError):
    """The accelerator or its driver refused a call."""


class OrderError(MemsysError, RuntimeError):
    """Simulation only: two uses of a block lack an edge between them, or a wait can never end."""


class InPlaceError(MemsysError, RuntimeError):
    """A tensor saved for backward was changed in place before backward needed it."""


class UnsupportedError(MemsysError, NotImplementedError):
    """memsys can't do this, and says what to do instead."""
