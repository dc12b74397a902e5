"""Real text to train on, found on every machine: the source of the Python standard library, or a file of the user's.

Batches are a function of (seed, step) alone, so that runs in different processes see the same bytes.
"""

from __future__ import annotations

import os
import random
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

# Not library text: installed packages, and the library's tests (large, and full of odd encodings).
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class TextError(ValueError):
    """The training text is missing or too short; the message names a remedy."""


def standard_library_text(root: Path | None = None) -> bytes:
    """The .py files under `root` (default: the standard library of this Python), in sorted order, joined."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    parts = [path.read_bytes() for path in sorted(paths)]
    if not parts:
        raise TextError(f"found no .py files under {root}; give a text with --data FILE")
    return b"".join(parts)


class Text:
    """Bytes to train on, with deterministic batches."""

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        self.content = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)

    @classmethod
    def load(cls, data: str | None = None) -> Text:
        """The file `data`, or the standard library. Raises TextError, OSError."""
        if data is None:
            return cls(standard_library_text(), "the Python standard library's source")
        return cls(Path(data).read_bytes(), data)

    def __len__(self) -> int:
        return self.content.numel()

    def batch(self, step: int, batch: int, seq: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """(tokens, targets), each int64 (batch, seq); `targets` is one byte ahead. The same for the same arguments."""
        if len(self) < seq + 1:
            raise TextError(f"{self.name} has {len(self)} bytes, {seq=} needs {seq + 1}; use a longer text")
        choice = random.Random(f"{seed}/{step}")  # a text as seed: every bit of both counts
        starts = [choice.randrange(len(self) - seq) for _ in range(batch)]
        rows = torch.stack([self.content[start : start + seq + 1] for start in starts]).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
