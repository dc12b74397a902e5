"""The simulation finds the bugs that peers have shipped: each is put back, and killed within a thousand seeds.

A kill is an edge that was missing, a gradient or bytes that differ, or more bytes of sources held than the bound.
"""

from __future__ import annotations

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
from shrink import shrink  # noqa: E402
from stream_scenario import Program, draw  # noqa: E402

MUTANTS = mutants.all_mutants()
WANTED = 11  # and one beside them
SEEDS = 1_000
TIMEOUT_S = 540


@pytest.fixture(scope="module", autouse=True)
def _fresh_build() -> None:
    mutants.refresh_build()


def hunt(mutant: mutants.Mutant, folder: Path, *, shrinks: bool) -> dict[str, Any]:
    """Runs seeds until one kills the mutant; those of csrc/ also by walks through the engine alone."""
    job = {"programs": [0, SEEDS], "stops": True, "shrinks": shrinks}
    if mutant.is_native:
        job["walks"] = [0, SEEDS]
        job["programs"] = [0, 1]  # these bugs are below the hooks: the walks are meant for them
    return seed_runner.run_jobs(mutants.plant(mutant, folder), [job], TIMEOUT_S)[0]


def kills_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [failure for failure in found["failures"] if failure["kind"] in seed_runner.KILLS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant: mutants.Mutant, tmp_path: Path) -> None:
    assert kills_of(hunt(mutant, tmp_path, shrinks=False)), mutant.about


def test_there_are_eleven_and_each_says_whose_bug_it_is() -> None:
    eleven = [mutant for mutant in MUTANTS if "Beside the eleven" not in mutant.about]
    assert len(eleven) == WANTED
    assert sum("Peer: " in mutant.about for mutant in eleven) == 9
    assert all(mutant.changes and mutant.about for mutant in MUTANTS)


def test_a_patch_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    stale = MUTANTS[0]._replace(changes=(MUTANTS[0].changes[0]._replace(old="no such line\n"),))
    with pytest.raises(ValueError, match="does not apply"):
        mutants.plant(stale, tmp_path)


def test_a_failing_program_is_shrunk_to_what_fails() -> None:
    """Here: whatever runs a backward that keeps its graph, after a forward."""

    def fails(program: Program) -> bool:
        kinds = [action.kind for action in program.actions]
        return "again" in kinds and "forward" in kinds[: kinds.index("again")]

    program = next(program for program in map(draw, range(100)) if fails(program) and len(program.actions) > 6)
    least = shrink(program, fails)
    assert [action.kind for action in least.actions] == ["forward", "again"]
    assert (len(least.blocks), least.blocks[0][1], least.breath, least.places) == (1, 0, 0, "host")
    assert least.seed == program.seed


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_mutant_is_killed_and_its_program_shrunk(tmp_path: Path) -> None:
    begin = time.monotonic()
    told = {}
    for mutant in MUTANTS:
        kills = kills_of(hunt(mutant, tmp_path, shrinks=True))
        for kill in kills:
            kill["message"] = kill["message"].split(" History")[0]
            assert kill.get("least_actions", 0) <= kill.get("actions", 0)
        told[mutant.name] = {"about": mutant.about, "kills": kills}
    killed = [name for name, one in told.items() if one["kills"] and "Beside the eleven" not in one["about"]]
    last = max(min(kill["seed"] for kill in one["kills"]) for one in told.values() if one["kills"])
    proof.record(
        "R4", "mutants",
        measure="stream bugs of peers put back into memsys, found by the seeded simulation",
        figure=f"{len(killed)} of {WANTED} killed, the last by seed {last}",
        target=f"{WANTED} of {WANTED} within {SEEDS:,} seeds each",
        is_met=len(killed) == WANTED,
        seconds=time.monotonic() - begin,
        mutants=told,
    )  # fmt: skip
    assert len(killed) == WANTED, told
