"""A file that appears whole or not at all: places that are refused, a full disk, writes that move less than asked."""

import errno
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from weight_files import random_bits

needs_memsys()

from memsys import SpillError, pack_weights, unpack_weights  # noqa: E402
from memsys.weights import output  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402

TENSORS = {f"{place}.w": random_bits((40_000,), torch.uint8, place) for place in range(4)}


def is_whole(path: Path) -> bool:
    weights = open_weights(path)
    return all(torch.equal(weights.read(name), tensor) for name, tensor in TENSORS.items())


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"old")
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(SpillError, match="link") as caught:
        pack_weights(TENSORS, tmp_path / "link")
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "other").read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".partial", ".partial.journal"])
def test_a_link_in_the_way_is_not_followed(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"old")
    (tmp_path / f"a{suffix}").symlink_to("other")
    with pytest.raises(SpillError, match=suffix):
        pack_weights(TENSORS, tmp_path / "a")
    assert (tmp_path / "other").read_bytes() == b"old"


def test_a_missing_folder_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match="missing") as caught:
        pack_weights(TENSORS, tmp_path / "none" / "a")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SpillError, match="regular file"):
        pack_weights(TENSORS, tmp_path)


def test_the_mode_is_that_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        pack_weights(TENSORS, tmp_path / "a")
        unpack_weights(tmp_path / "a", tmp_path / "b")
    finally:
        os.umask(before)
    assert [os.stat(tmp_path / name).st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    real = os.fstatvfs

    class Full:
        f_bavail, f_frsize = 3, 4096

    monkeypatch.setattr(output.os, "fstatvfs", lambda descriptor: real(descriptor) and Full())
    monkeypatch.setattr(output.os, "pwrite", None)
    with pytest.raises(SpillError, match=r"wanted \d{6} bytes, found 12288 free") as caught:
        pack_weights(TENSORS, tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_limit_on_file_size(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SpillError, match=r"wanted \d+ bytes, found \d+ free") as caught:
            pack_weights(TENSORS, tmp_path / "a")
        assert caught.value.errno == errno.EFBIG
        assert os.listdir(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 512 KiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    pack_weights(TENSORS, small_disk / "a")
    with pytest.raises(SpillError, match=r"wanted \d+ bytes, found \d+ free") as caught:
        pack_weights({"w": torch.zeros(2**19, dtype=torch.uint8)}, small_disk / "b")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SpillError, match="free"):
        pack_weights({**TENSORS, "more.w": torch.zeros(2**18, dtype=torch.uint8)}, small_disk / "a")
    assert os.listdir(small_disk) == ["a"] and is_whole(small_disk / "a")


def test_space_that_another_takes_meanwhile(tmp_path: Path, monkeypatch) -> None:
    def refuse(descriptor: int, offset: int, bytes_: int) -> None:
        os.ftruncate(descriptor, bytes_ // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "posix_fallocate", refuse)
    with pytest.raises(SpillError, match="free") as caught:
        pack_weights(TENSORS, tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


def test_short_writes_are_completed(tmp_path: Path, monkeypatch) -> None:
    real, sizes = os.pwrite, []

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        sizes.append(len(data))
        return real(descriptor, data[: max(1, len(data) // 3)], offset)

    monkeypatch.setattr(output.os, "pwrite", short)
    pack_weights(TENSORS, tmp_path / "a")
    assert is_whole(tmp_path / "a") and len(sizes) > 40


def test_a_write_of_nothing_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(output.os, "pwrite", lambda descriptor, data, offset: 0)
    with pytest.raises(SpillError) as caught:
        pack_weights(TENSORS, tmp_path / "a")
    assert caught.value.errno == errno.EIO


def test_signals_do_not_matter(tmp_path: Path) -> None:
    """A timer that interrupts system calls all the time."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(5):
            pack_weights(TENSORS, tmp_path / "a")
            unpack_weights(tmp_path / "a", tmp_path / "b")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen and is_whole(tmp_path / "a") and is_whole(tmp_path / "b")


def test_after_a_failed_sync_nothing_is_kept(tmp_path: Path, monkeypatch) -> None:
    """The system forgets which pages it could not write, so that what is read back later proves nothing."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(output.os, "fdatasync", refuse)
    with pytest.raises(SpillError, match="syncing") as caught:
        pack_weights(TENSORS, tmp_path / "a")
    assert caught.value.errno == errno.EIO
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_one_writer_at_a_time(tmp_path: Path, monkeypatch) -> None:
    """The second is refused and leaves the first alone."""
    real, inside, resume = os.pwrite, threading.Event(), threading.Event()

    def slow(descriptor: int, data: memoryview, offset: int) -> int:
        inside.set()
        assert resume.wait(60)
        return real(descriptor, data, offset)

    monkeypatch.setattr(output.os, "pwrite", slow)
    first = threading.Thread(target=pack_weights, args=(TENSORS, tmp_path / "a"))
    first.start()
    assert inside.wait(60)
    try:
        with pytest.raises(SpillError, match="another process"):
            pack_weights(TENSORS, tmp_path / "a")
    finally:
        resume.set()
        first.join()
    assert is_whole(tmp_path / "a") and os.listdir(tmp_path) == ["a"]


def test_the_order_of_the_last_steps(tmp_path: Path, monkeypatch) -> None:
    """The data reaches the disk before the name does, and the name before the call returns."""
    steps = []
    for name in ("fdatasync", "rename", "fsync", "pwrite"):
        real = getattr(os, name)

        def noted(*arguments, real=real, name=name):
            steps.append(name)
            return real(*arguments)

        monkeypatch.setattr(output.os, name, noted)
    pack_weights(TENSORS, tmp_path / "a")
    assert steps[-4:] == ["pwrite", "fdatasync", "rename", "fsync"]
