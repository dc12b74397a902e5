"""Builds the C++ fuzz targets, with the address and undefined-behaviour sanitizers in them, and runs them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "tests" / "proof" / "corpus"
SANITIZERS = ("__asan_init", "__ubsan_handle")


@functools.cache
def build() -> None:
    """All targets, into build/fuzz. Fails the test where they do not build, and skips it where there is no cmake."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"the fuzz targets need {tool}, and there is none on PATH: pip install {tool}")
    options = {"CMAKE_BUILD_TYPE": "Release", "MEMSYS_FUZZ": "ON", "MEMSYS_PYTHON": "OFF", "MEMSYS_CUDA": "OFF",
               "MEMSYS_WERROR": "ON", "MEMSYS_SANITIZE": "address,undefined",
               "CMAKE_MAKE_PROGRAM": shutil.which("ninja")}  # fmt: skip
    defines = [f"-D{name}={value}" for name, value in options.items()]
    _run("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *defines)
    _run("cmake", "--build", str(BUILD), "--target", "fuzz_header", "fuzz_units")


def _run(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command[:4])}: exit status {done.returncode}\n{done.stdout[-4000:]}", pytrace=False)
    return done.stdout


def program(target: str) -> Path:
    build()
    return BUILD / f"fuzz_{target}"


def is_sanitized(target: str) -> bool:
    """Whether both sanitizers are really in the program."""
    symbols = _run("nm", "-C", str(program(target)))
    return all(mark in symbols for mark in SANITIZERS)


def fuzz(target: str, artifacts: Path, *arguments: str, timeout: float) -> dict[str, float]:
    """Runs a target on its corpus; returns what it tells of itself. A finding fails the test, its input is shown.

    Findings lie in build/fuzz-findings afterwards: once mended, each is moved to the corpus.
    """
    done = subprocess.run([program(target), *arguments, "--artifacts", artifacts, CORPUS / target],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          timeout=timeout, env={**os.environ, "ASAN_OPTIONS": "", "UBSAN_OPTIONS": ""})  # fmt: skip
    if done.returncode != 0:
        kept = ROOT / "build" / "fuzz-findings"
        kept.mkdir(parents=True, exist_ok=True)
        found = [shutil.copy(path, kept / f"{target}-{path.name}") for path in artifacts.glob("crash-*")]
        pytest.fail(f"fuzz_{target} {' '.join(arguments)}: {found}\n{done.stderr[-4000:]}", pytrace=False)
    return json.loads(done.stdout)


def replay(target: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Runs a target on one file."""
    return subprocess.run([program(target), path], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=60)  # fmt: skip
