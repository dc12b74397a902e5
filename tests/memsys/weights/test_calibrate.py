"""Calibration ends in time, knows the file from the folder, and predicts reads of a size that it did not measure."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from memsys.errors import InputError
from memsys.weights import calibrate as subject
from memsys.weights.calibrate import CHUNKS_BYTES, DEPTHS, calibrate, check
from memsys.weights.cost import RatePoint, Rates, ReadRates, comparison


def file_of(folder: Path, size_bytes: int) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(os.urandom(1 << 16) * (size_bytes >> 16) + bytes(size_bytes & 0xFFFF))
    return path


def test_a_file_is_measured_in_time_and_left_alone(tmp_path: Path) -> None:
    path = file_of(tmp_path, 8 << 20)
    before = (path.read_bytes(), path.stat().st_mtime_ns, os.listdir("/proc/self/fd"))
    began = time.perf_counter()
    rates = calibrate(path, seconds=0.5)
    assert time.perf_counter() - began < 5
    assert {(point.chunk_bytes, point.queue_depth) for point in rates.read.points} == {
        (chunk, depth) for chunk in CHUNKS_BYTES for depth in DEPTHS
    }
    assert min(rates.read.at(4096, 1), rates.copy_bytes_per_s, rates.touch_bytes_per_s, rates.compute_flops) > 0
    assert (path.read_bytes(), path.stat().st_mtime_ns, os.listdir("/proc/self/fd")) == before
    assert "chunk, KiB" in str(rates)


def test_a_folder_is_measured_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_PROBE_BYTES", 4 << 20)
    rates = calibrate(tmp_path, seconds=0.5)
    assert len(rates.read.points) == len(CHUNKS_BYTES) * len(DEPTHS)
    assert not list(tmp_path.iterdir())


def test_a_small_file_has_fewer_chunks(tmp_path: Path) -> None:
    rates = calibrate(file_of(tmp_path, 40_000), seconds=0.2)
    assert {point.chunk_bytes for point in rates.read.points} == {4 << 10, 16 << 10, 32 << 10}


class SlowDrive:
    """A clock that moves by what reads take: a millisecond and a nanosecond a byte, one after another."""

    def __init__(self) -> None:
        self.now, self._lock, self._read = 0.0, threading.Lock(), os.preadv

    def perf_counter(self) -> float:
        return self.now

    def preadv(self, descriptor: int, buffers: list, offset: int) -> int:
        assert offset % 4096 == 0
        count = self._read(descriptor, buffers, offset)
        with self._lock:
            self.now += 1e-3 + 1e-9 * count
        return count


def test_what_is_measured_is_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive, path = SlowDrive(), file_of(tmp_path, 2 << 20)
    monkeypatch.setattr(os, "preadv", drive.preadv)
    monkeypatch.setattr(subject, "time", drive)
    monkeypatch.setattr(subject, "_measure_touch", lambda: 1e9)
    monkeypatch.setattr(subject, "_measure_compute", lambda: 1e9)
    rates = calibrate(path, seconds=0.5)
    wanted = {chunk: chunk / (1e-3 + 1e-9 * chunk) for chunk in CHUNKS_BYTES}
    for point in rates.read.points:
        assert point.bytes_per_s == pytest.approx(wanted[point.chunk_bytes])
    predicted, measured = check(path, rates)
    assert predicted.read_bytes == pytest.approx(measured.read_bytes)
    assert measured.io_s == pytest.approx(measured.read_bytes / (24 << 10) * (1e-3 + 1e-9 * (24 << 10)))
    assert predicted.io_s == pytest.approx(measured.io_s, rel=0.02)
    assert predicted.written_bytes == 0
    assert "predicted/measured" in comparison(predicted, measured)


def test_a_wrong_rate_shows_in_the_check(tmp_path: Path) -> None:
    rates = Rates(ReadRates([RatePoint(4096, 1, 1e15)]), 1, 1, 1)
    predicted, measured = check(file_of(tmp_path, 1 << 20), rates, seconds=0.1)
    assert predicted.io_s < measured.io_s / 100


def test_a_file_that_shrinks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = file_of(tmp_path, 1 << 20), os.preadv

    def shrink(descriptor: int, buffers: list, offset: int) -> int:
        os.truncate(path, 0)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrink)
    with pytest.raises(OSError, match="the file changed"):
        calibrate(path, seconds=0.2)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="less than a page"):
        calibrate(file_of(tmp_path, 100))
    for seconds in (0, -1, 60):
        with pytest.raises(InputError, match="seconds"):
            calibrate(tmp_path, seconds=seconds)
    with pytest.raises(OSError, match="missing"):
        calibrate(tmp_path / "missing")
