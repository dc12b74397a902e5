"""Measures what the links of this machine can carry, so that a rate can be shown as a share of its peak.

RAM and file rates need neither torch nor the compiled module: `memsys doctor` runs where one of them is broken.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

BLOCK_BYTES = 4 << 20
IN_FLIGHT = 4
_FILE_BYTES = 256 << 20
_COPY_BYTES = 64 << 20
# A slow disk gives its rate in this time, too.
_LONGEST_S = 2.0


@dataclass(frozen=True)
class FileRates:
    """Bytes per second of a folder's file system, with several 4 MiB requests in flight."""

    write_rate: float
    read_rate: float
    is_direct: bool


def measure_copy_rate() -> float:
    """Bytes per second that one thread copies within RAM: the best of three over 64 MiB."""
    source, target = mmap.mmap(-1, _COPY_BYTES), mmap.mmap(-1, _COPY_BYTES)
    source_view, target_view = memoryview(source), memoryview(target)
    best = 0.0
    for _ in range(4):  # the first touches the pages
        started = time.perf_counter()
        target_view[:] = source_view
        best = max(best, _COPY_BYTES / (time.perf_counter() - started))
    source_view.release()
    target_view.release()
    return best


def measure_file_rates(folder: str | os.PathLike[str], file_bytes: int = _FILE_BYTES) -> FileRates:
    """Writes and reads a nameless file in `folder`, past the page cache where the file system allows it.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    with nameless_file(folder) as (descriptor, is_direct), ThreadPoolExecutor(IN_FLIGHT) as pool:
        buffers = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(IN_FLIGHT)]
        for index, buffer in enumerate(buffers):
            buffer[:] = os.urandom(1 << 16) * (BLOCK_BYTES >> 16) if index == 0 else buffers[0][:]
        written, write_rate = _run_lanes(pool, buffers, os.pwritev, descriptor, file_bytes)
        if not is_direct:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        _, read_rate = _run_lanes(pool, buffers, os.preadv, descriptor, written)
    return FileRates(write_rate, read_rate, is_direct)


def _run_lanes(
    pool: ThreadPoolExecutor,
    buffers: list[mmap.mmap],
    move: Callable[[int, list[mmap.mmap], int], int],
    descriptor: int,
    total_bytes: int,
) -> tuple[int, float]:
    """(bytes of the file's start that every lane has moved, bytes per second of all lanes)."""
    started = time.perf_counter()

    def lane(index: int) -> int:
        count = 0
        for offset in range(index * BLOCK_BYTES, total_bytes, IN_FLIGHT * BLOCK_BYTES):
            if move(descriptor, [buffers[index]], offset) != BLOCK_BYTES:
                raise OSError(f"a transfer of {BLOCK_BYTES} bytes at {offset} came back short; free some disk space")
            count += 1
            if time.perf_counter() - started > _LONGEST_S:
                break
        return count

    counts = list(pool.map(lane, range(IN_FLIGHT)))
    rate = sum(counts) * BLOCK_BYTES / (time.perf_counter() - started)
    return min(counts) * IN_FLIGHT * BLOCK_BYTES, rate


@contextlib.contextmanager
def nameless_file(folder: str | os.PathLike[str]) -> Iterator[tuple[int, bool]]:
    """(descriptor, whether it is direct) of a file without a name, so that nothing is left behind."""
    for flags, is_direct in ((os.O_DIRECT, True), (0, False)):
        try:
            descriptor = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | flags, 0o600)
        except OSError:
            continue
        try:
            yield descriptor, is_direct
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield file.fileno(), False


def measure_gpu_rates() -> tuple[float, float]:
    """(to the GPU, from the GPU) in bytes per second, pinned memory, the best of three over 64 MiB. Needs a GPU."""
    import torch

    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")

    def best(target: torch.Tensor, source: torch.Tensor) -> float:
        rate = 0.0
        for _ in range(4):
            torch.cuda.synchronize()
            started = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            rate = max(rate, _COPY_BYTES / (time.perf_counter() - started))
        return rate

    return best(device, host), best(host, device)
