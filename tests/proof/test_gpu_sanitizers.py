"""A GPU sanitizer that did not run is not a clean run: what the GPU check asks of compute-sanitizer.

No GPU is needed: the tool on PATH is a script, and most of these lie.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.proof

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
BANNER, PASSED = "========= COMPUTE-SANITIZER", "3 passed, 0 failed, 1 skipped"
SUMMARIES = {"memcheck": "ERROR SUMMARY: 0 errors", "initcheck": "ERROR SUMMARY: 0 errors",
             "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
             "synccheck": "ERROR SUMMARY: 0 errors"}  # fmt: skip


@pytest.fixture
def missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What the check says of a tool that prints these lines; None: there is no such tool."""
    monkeypatch.syspath_prepend(GPU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sanitizer = importlib.import_module("sanitizer")

    def check(tool: str, lines: list[str] | None, status: int = 0) -> list[str]:
        if lines is not None:
            text = "".join(f"echo '{line}'\n" for line in lines)
            (tmp_path / "compute-sanitizer").write_text(f"#!/bin/sh\n{text}exit {status}\n")
            (tmp_path / "compute-sanitizer").chmod(0o755)
        (result,) = sanitizer.run_tools([Path("test_device")], [tool], 60)
        return result["missing"]

    return check


@pytest.mark.parametrize("tool", SUMMARIES)
def test_a_tool_that_ran_is_believed(tool: str, missing) -> None:
    assert missing(tool, [BANNER, *["a line of output"] * 500, PASSED, f"========= {SUMMARIES[tool]}"]) == []


@pytest.mark.parametrize("tool", SUMMARIES)
@pytest.mark.parametrize(
    ("lines", "status", "found"),
    [
        (None, 0, "exit status 127"),
        ([], 0, "COMPUTE-SANITIZER"),
        ([PASSED], 0, "COMPUTE-SANITIZER"),
        ([BANNER, PASSED], 0, "SUMMARY"),
        ([BANNER, PASSED, "========= ERROR SUMMARY: 1 error"], 0, "SUMMARY"),
        ([BANNER, "========= {summary}"], 0, "no C++ test passed"),
        ([BANNER, "0 passed, 0 failed, 9 skipped", "========= {summary}"], 0, "no C++ test passed"),
        ([BANNER, "3 passed, 1 failed, 0 skipped", "========= {summary}"], 0, "no C++ test passed"),
        ([BANNER, PASSED, "========= {summary}"], 1, "exit status 1"),
        (["========= Error: Target application returned an error", PASSED], 0, "COMPUTE-SANITIZER"),
    ],
)
def test_a_tool_that_did_not_is_not(tool, lines, status, found, missing) -> None:
    shown = None if lines is None else [line.format(summary=SUMMARIES[tool]) for line in lines]
    assert found in str(missing(tool, shown, status))
