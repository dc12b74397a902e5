"""No false alarm: the code as it is passes every seed, and a seed that fails would fail again, at the same place.

A seed is either a program (memsys's hooks under torch on several streams, its gradients compared bit for bit) or a walk
(the engine alone, its bytes compared); the two are counted apart.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import proof
import pytest
from built import needs_memsys

needs_memsys()
pytestmark = pytest.mark.proof

import mutants  # noqa: E402
import seed_runner  # noqa: E402

PROGRAMS, WALKS = 400, 600
MANY_PROGRAMS, MANY_WALKS = 2_000, 98_000


def run_all(folder: Path, programs: int, walks: int, timeout_s: float) -> list[dict[str, Any]]:
    """The seeds from 0, divided among as many processes as there are processors."""
    tree, parts = mutants.plant(None, folder), os.cpu_count() or 1
    jobs = [{"programs": part_of(programs, part, parts), "walks": part_of(walks, part, parts)} for part in range(parts)]
    return seed_runner.run_jobs(tree, jobs, timeout_s)


def part_of(count: int, part: int, parts: int) -> list[int]:
    return [count * part // parts, count * (part + 1) // parts]


def told(found: list[dict[str, Any]]) -> str:
    """What failed, as its seed, its history and its program."""
    failures = [failure for one in found for failure in one["failures"]]
    return "\n\n".join(
        f"{one['level']} seed {one['seed']}: {one['kind']}: {one['message']}\n{one.get('program', '')}"
        for one in failures[:5]
    )


def total(found: list[dict[str, Any]], name: str) -> int:
    return sum(one[name] for one in found)


def test_a_thousand_seeds_are_clean(tmp_path: Path) -> None:
    found = run_all(tmp_path, PROGRAMS, WALKS, 170)
    assert not told(found), told(found)
    assert (total(found, "programs"), total(found, "walks")) == (PROGRAMS, WALKS)


def test_one_seed_is_one_schedule(tmp_path: Path) -> None:
    """In two processes, whose addresses differ: the same seeds run the same tasks in the same order."""
    tree = mutants.plant(None, tmp_path)
    jobs = [{"programs": [0, 12], "walks": [0, 12]}] * 2 + [{"programs": [1, 13], "walks": [1, 13]}]
    first, again, other = seed_runner.run_jobs(tree, jobs, 170)
    assert (first["digest"], first["operations"]) == (again["digest"], again["operations"])
    assert first["digest"] != other["digest"]


@pytest.mark.nightly
@pytest.mark.timeout(14_400)
def test_a_hundred_thousand_seeds_are_clean(tmp_path: Path) -> None:
    begin = time.monotonic()
    found = run_all(tmp_path, MANY_PROGRAMS, MANY_WALKS, 14_000)
    alarms = sum(len(one["failures"]) for one in found)
    programs, walks = total(found, "programs"), total(found, "walks")
    proof.record(
        "R4", "clean-seeds",
        measure="schedules of memsys as it is, without a false alarm of the simulation",
        figure=f"{programs + walks:,} seeds, {alarms} alarms",
        target=f"{MANY_PROGRAMS + MANY_WALKS:,} seeds, 0 alarms",
        is_met=alarms == 0 and (programs, walks) == (MANY_PROGRAMS, MANY_WALKS),
        seconds=time.monotonic() - begin,
        programs=programs, walks=walks, torch_operations=total(found, "operations"),
        seeds="programs and walks each from 0; see tests/support/stream_scenario.py and engine_walk.py",
        alarms=told(found),
    )  # fmt: skip
    assert not told(found), told(found)
