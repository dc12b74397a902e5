"""Measures in a few seconds what memsys/weights/cost.py predicts with: reads by chunk size and queue depth, copies and
products. And shows the prediction for reads of another size beside what they take.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from memsys.errors import InputError
from memsys.report.links import measure_copy_rate, nameless_file
from memsys.weights.cost import Cost, RatePoint, Rates, Read, ReadRates, Work, predict

CHUNKS_BYTES = (4 << 10, 16 << 10, 32 << 10, 128 << 10, 1 << 20)
DEPTHS = (1, 4, 32)
LONGEST_S = 5.0
_PAGE_BYTES = 4096
_PROBE_BYTES = 128 << 20
# At most so much is under way at once, so that the largest chunks take no longer than the smallest.
_IN_FLIGHT_BYTES = 16 << 20
_TOUCHED_BYTES = 32 << 20
_PRODUCT_WIDTH = 512
_PRODUCT_S = 0.05
# What the checked reads are like: none of the sizes that were measured.
_CHECKED = Read(0, 24 << 10, 16)


class _Opened(NamedTuple):
    descriptor: int
    size_bytes: int
    is_direct: bool


def calibrate(path: str | os.PathLike[str], seconds: float = 3.0) -> Rates:
    """What this machine can do with the file `path`, or with files of the folder `path`, past the page cache.

    Takes about `seconds` (at most 5; a folder's probe of 128 MiB has to be written first, and has no name). Where the
    file system knows no direct reads, `is_direct` is False and the rates are those of the page cache.

    Raises:
        InputError: `seconds` out of range, or a file of less than a page.
        OSError: nothing to read there.
    """
    if not 0 < seconds <= LONGEST_S:
        raise InputError(f"calibrate: seconds must be above 0 and at most {LONGEST_S:g}, found {seconds}; try 3")
    began = time.perf_counter()
    copy_rate = measure_copy_rate()
    touch_rate, flops = _measure_touch(), _measure_compute()
    with _open(path, longest_s=seconds / 3) as opened:
        chunks = [chunk for chunk in CHUNKS_BYTES if chunk <= opened.size_bytes]
        left = max(seconds - (time.perf_counter() - began), seconds / 3)
        slot_s = left / (len(chunks) * len(DEPTHS))
        points = [RatePoint(chunk, depth, _measure_reads(opened, chunk, depth, slot_s))
                  for depth in DEPTHS for chunk in chunks]  # fmt: skip
        return Rates(ReadRates(points), copy_rate, touch_rate, flops, opened.is_direct)


def check(path: str | os.PathLike[str], rates: Rates, seconds: float = 0.5) -> tuple[Cost, Cost]:
    """(predicted, measured) I/O of reads of 24 KiB, 16 in flight, which none of the measured points is. Print
    `cost.comparison` of the two."""
    with _open(path, longest_s=seconds) as opened:
        chunk = min(_CHECKED.chunk_bytes, opened.size_bytes // _PAGE_BYTES * _PAGE_BYTES)
        began = time.perf_counter()
        rate = _measure_reads(opened, chunk, _CHECKED.queue_depth, seconds)
        elapsed = time.perf_counter() - began
    size_bytes = rate * elapsed
    predicted = predict(Work((Read(size_bytes, chunk, _CHECKED.queue_depth),)), rates)
    return predicted, Cost(io_s=elapsed, read_bytes=size_bytes)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str], longest_s: float) -> Iterator[_Opened]:
    if os.path.isdir(path):
        with nameless_file(path) as (descriptor, is_direct):
            yield _Opened(descriptor, _fill(descriptor, is_direct, longest_s), is_direct)
        return
    try:
        descriptor, is_direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT), True
    except OSError as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        descriptor, is_direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes < _PAGE_BYTES:
            raise InputError(f"calibrate: {os.fspath(path)!r} has {size_bytes} bytes, which is less than a page; give "
                             "the file of the weights, or a folder")  # fmt: skip
        yield _Opened(descriptor, size_bytes, is_direct)
    finally:
        os.close(descriptor)


def _fill(descriptor: int, is_direct: bool, longest_s: float) -> int:
    """Writes the probe, as much of it as the time allows; its size."""
    began, written = time.perf_counter(), 0
    block = mmap.mmap(-1, 1 << 20)
    block[:] = os.urandom(1 << 20)
    while written < _PROBE_BYTES and (written == 0 or time.perf_counter() - began < longest_s):
        count = os.pwritev(descriptor, [block], written)
        if count != len(block):
            raise OSError(f"a write of {len(block)} bytes at {written} came back with {count}; free some disk space")
        written += count
    if not is_direct:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return written


def _measure_reads(opened: _Opened, chunk_bytes: int, depth: int, seconds: float) -> float:
    """Bytes per second of reads at random pages, `depth` of them in flight."""
    lanes = max(1, min(depth, _IN_FLIGHT_BYTES // chunk_bytes))
    last_page = (opened.size_bytes - chunk_bytes) // _PAGE_BYTES
    began = time.perf_counter()

    def lane(seed: int) -> int:
        choice, done = random.Random(seed), 0
        with mmap.mmap(-1, chunk_bytes) as buffer:
            while done == 0 or time.perf_counter() - began < seconds:
                offset = choice.randint(0, last_page) * _PAGE_BYTES
                count = os.preadv(opened.descriptor, [buffer], offset)
                if count != chunk_bytes:
                    raise OSError(f"a read of {chunk_bytes} bytes at {offset} came back with {count}; the file changed")
                done += count
        return done

    with ThreadPoolExecutor(lanes) as pool:
        done = sum(pool.map(lane, range(lanes)))
    return done / (time.perf_counter() - began)


def _measure_touch() -> float:
    """Bytes of weights per second that the product of one token reads from memory."""
    weight = torch.ones(_TOUCHED_BYTES // 4 // 1024, 1024)
    token = torch.ones(1, 1024)
    return weight.nbytes / _best_of(lambda: torch.nn.functional.linear(token, weight))


def _measure_compute() -> float:
    """Floating-point operations per second of a product of square float32 matrices."""
    matrix = torch.ones(_PRODUCT_WIDTH, _PRODUCT_WIDTH)
    return 2 * _PRODUCT_WIDTH**3 / _best_of(lambda: matrix @ matrix)


def _best_of(product: Callable[[], object]) -> float:
    """Seconds of the quickest call, of at least two and for as long as a measurement takes."""
    best, began, count = float("inf"), time.perf_counter(), 0
    with torch.no_grad():
        while count < 2 or time.perf_counter() - began < _PRODUCT_S:
            started = time.perf_counter()
            product()
            best, count = min(best, time.perf_counter() - started), count + 1
    return best
