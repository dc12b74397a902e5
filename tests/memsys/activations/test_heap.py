"""The heap is trimmed when the process has grown, and not before."""

from __future__ import annotations

import pytest
from built import needs_memsys

needs_memsys()

from memsys.activations import heap  # noqa: E402


def test_trims_once_each_time_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = 1 << 30
    monkeypatch.setattr(heap, "resident_bytes", lambda: resident)
    asked = []
    monkeypatch.setattr(heap.pages.MainHeap, "prefer_huge", lambda _: asked.append(resident))
    trimmer = heap.HeapTrimmer()
    if trimmer._trim is None:
        pytest.skip("the C library has no malloc_trim")
    counts = []
    for growth in (1 << 20, 62 << 20, 2 << 20, 1 << 20, -(200 << 20), 40 << 20, 50 << 20):
        resident += growth
        trimmer.check()
        counts.append(trimmer.trim_count)
    assert counts == [0, 0, 1, 1, 1, 1, 2]
    assert len(asked) == len(counts)  # the heap may have grown each time


def test_says_what_the_process_uses() -> None:
    before = heap.resident_bytes()
    block = bytearray(64 << 20)
    block[:: 4 << 10] = b"x" * len(block[:: 4 << 10])
    assert heap.resident_bytes() - before > 32 << 20
