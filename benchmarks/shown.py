"""How the benchmarks show a rate: beside the measured peak of its link, since a rate alone says little."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pytest


def share_of_peak(name: str, moved_bytes: int, seconds: Sequence[float], peak_rate: float, peak_name: str) -> str:
    """One line: the median rate of moving `moved_bytes`, and its share of `peak_rate` (bytes per second)."""
    rate = moved_bytes / statistics.median(seconds)
    return f"{name}: {rate / 1e9:.2f} GB/s, {rate / peak_rate:.0%} of {peak_rate / 1e9:.2f} GB/s ({peak_name})"


def caution(benchmark: Any) -> list[str]:
    """What to say beside figures of a run that only checks that the benchmark works."""
    return [] if benchmark.enabled else ["(smoke size: these figures mean nothing)"]


def show(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    """Prints the lines past pytest's capture, so that a figure is seen without -s."""
    with capsys.disabled():
        print("", *lines, sep="\n    ", flush=True)
