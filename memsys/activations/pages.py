"""What the kernel is told about ranges of this process's memory: which pages nobody needs, and where large ones pay.

All of it is advice: where the kernel knows none of it, memory is used as before.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

_HUGE_PAGE_BYTES = 2 << 20
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
_library = ctypes.PyDLL(None)  # PyDLL: the calls keep the GIL
_madvise = _library.madvise
_madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_sbrk = _library.sbrk
_sbrk.restype, _sbrk.argtypes = ctypes.c_size_t, (ctypes.c_ssize_t,)


def discard(begin: int, end: int) -> None:
    """Gives the whole pages in [begin, end), which nobody will read again, back to the system; their bytes are lost.

    Their next use takes huge pages, where whole ones fit: one fault for 2 MiB instead of 512.
    """
    _advise(begin, end, _HUGE_PAGE_BYTES, _MADV_HUGEPAGE)
    _advise(begin, end, mmap.PAGESIZE, _MADV_DONTNEED)


def _advise(begin: int, end: int, unit_bytes: int, advice: int) -> None:
    """To the units that lie wholly in [begin, end)."""
    begin, end = -(-begin // unit_bytes) * unit_bytes, end // unit_bytes * unit_bytes
    if end > begin:
        _madvise(begin, end - begin, advice)


class MainHeap:
    """The C library's contiguous heap, which grows at its end."""

    def __init__(self) -> None:
        self._begin = _heap_begin()
        self._advised_end = 0

    def prefer_huge(self) -> None:
        """Asks for huge pages in all of it. What the heap has grown by since needs asking again."""
        end = _sbrk(0)
        if self._begin is not None and end != self._advised_end:
            self._advised_end = end
            _advise(self._begin, end, mmap.PAGESIZE, _MADV_HUGEPAGE)


def _heap_begin() -> int | None:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split("-")[0], 16) for line in lines if line.endswith("[heap]")), None)
