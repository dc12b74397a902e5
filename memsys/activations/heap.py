"""return_memory: gives freed heap back to the system, on request only.

glibc keeps freed blocks below its mmap threshold in its heap, so the peak of a step outlives it. Turning from forward
to backward is when most of it is free; giving it back there, once, costs a few page faults instead of one per block.
"""

from __future__ import annotations

import ctypes

# Less than this is not worth the page faults of taking it again.
_WORTH_BYTES = 32 << 20


class _MallInfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                 "keepcost")]  # fmt: skip


class HeapKeeper:
    """Calls malloc_trim when enough of the heap is free; does nothing where the C library has no such call."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None)
        self._info = getattr(library, "mallinfo2", None)
        if self._info is not None:
            self._info.restype = _MallInfo2
        self.trim_count = 0

    def turn(self) -> None:
        """Gives free heap back, if there is enough of it."""
        if self._trim is None or (self._info is not None and self._info().fordblks < _WORTH_BYTES):
            return
        self._trim(0)
        self.trim_count += 1

    def release(self) -> None:
        self.turn()
