"""Pages that are given back read as zeros and only they; the heap's pages become huge where the kernel has those."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

from memsys.activations import pages  # noqa: E402

MIB = 1 << 20
MADV_NOHUGEPAGE = 15


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (100, mmap.PAGESIZE + 5), (3 * MIB + 8, 8)])
def test_discards_whole_pages_and_nothing_beside_them(before: int, after: int) -> None:
    with mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * len(memory))
        view = (ctypes.c_char * len(memory)).from_buffer(memory)
        base = ctypes.addressof(view)
        del view
        begin, end = before, len(memory) - after
        pages.discard(base + begin, base + end)
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        assert memory[:first] == b"x" * first
        assert memory[first:last] == bytes(last - first)
        assert memory[last:] == b"x" * (len(memory) - last)


def test_the_heap_takes_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("the kernel gives no huge pages here")
    begin = pages._heap_begin()
    assert begin is not None
    pages._advise(begin, pages._sbrk(0), mmap.PAGESIZE, MADV_NOHUGEPAGE)  # other tests may have asked already
    assert "hg" not in flags_of(begin)
    pages.MainHeap().prefer_huge()
    assert "hg" in flags_of(begin)


def flags_of(address: int) -> list[str]:
    """VmFlags of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    return []
