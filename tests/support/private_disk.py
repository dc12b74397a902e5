"""A small file system of one's own, whose every used byte is one's own too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def private_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size` at folder/disk. Skips the test, with the reason, where mounting is not allowed."""
    place = folder / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(place)],
                              capture_output=True, text=True)  # fmt: skip
    except OSError as error:
        pytest.skip(f"no tmpfs of our own: {error}")
    if done.returncode != 0:
        pytest.skip(f"no tmpfs of our own: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
