"""What is left when a process ends, or is told to, in the middle of a step: no file, no byte of disk, no broken state.

Killed at random moments, interrupted as by Ctrl-C, forked, spawned, and failing in the middle of forward and backward.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

import proof  # noqa: E402
from fresh_process import PATHS, output_of  # noqa: E402
from private_disk import private_disk  # noqa: E402

pytestmark = pytest.mark.proof

SEED = 20
FORKED = """
import os, sys
import memsys, torch
torch.set_num_threads(1)  # torch's own threads do not survive a fork, whoever uses them
from gradients import *
model = offloaded(small_model(), sys.argv[1], TIERS["file"])
wanted = step(small_model(), small_input())
assert_same(step(model, small_input()), wanted)
model.zero_grad()
loss = model(small_input()).square().mean()
child = os.fork()
if child == 0:
    try:
        model(small_input())
    except memsys.UnsupportedError as error:
        assert "forked" in str(error)
        fresh = offloaded(small_model(), sys.argv[1], TIERS["file"])
        assert_same(step(fresh, small_input()), wanted)
        del loss
        sys.exit(7)  # with finalizers, threads and all
    sys.exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
loss.backward()
assert_same([loss, *gradients(model)], wanted)
del loss
assert_idle(model)
print("right")
"""
SPAWNED = """
import multiprocessing, sys
import memsys
from gradients import *
def work(folder, ends):
    model = offloaded(small_model(), folder, TIERS["file"])
    assert_same(step(model, small_input()), step(small_model(), small_input()))
    ends.put("right")
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    model = offloaded(small_model(), sys.argv[1], TIERS["file"])
    loss = model(small_input()).square().mean()
    ends = context.Queue()
    child = context.Process(target=work, args=(sys.argv[1], ends))
    child.start()
    assert ends.get(timeout=100) == "right"
    child.join()
    assert child.exitcode == 0
    loss.backward()
    print("right")
"""


def strike(script: str, *arguments: object) -> dict:
    """What a module of the support folder prints, run as a script; fails with what it complained of."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(PATHS[1] / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def kill(load: str, count: int, folder: Path, seed: int = SEED) -> dict:
    with private_disk(folder, "256m") as disk:
        found = strike("killing.py", load, disk, count, seed)
    assert found["kills"] == count
    assert (found["files_left"], found["bytes_held"], found["wrong"]) == ([], [], [])
    return found


KILLED = ("train, file", "stream", "pack")
INTERRUPTED = ("train, file", "train, host then file", "gather", "stream", "pack")


@pytest.mark.parametrize("load", KILLED)
def test_a_few_kills_leave_nothing(load: str, tmp_path: Path) -> None:
    kill(load, 10, tmp_path)


@pytest.mark.parametrize("load", ["train, file", "stream"])
def test_a_few_interrupts_end_well(load: str, tmp_path: Path) -> None:
    found = strike("interrupting.py", load, tmp_path, "timer", 10, SEED)
    assert found["wrong"] == []
    assert found["interrupts"] > 0


def test_a_forked_child_is_told_and_its_parent_goes_on(tmp_path: Path) -> None:
    assert output_of(FORKED, tmp_path).strip() == "right"
    assert list(tmp_path.iterdir()) == []


def test_a_spawned_child_works_beside_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    spill = tmp_path / "spill"
    spill.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    done = subprocess.run([sys.executable, str(script), str(spill)], env=environment, capture_output=True, text=True,
                          timeout=150)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "right"
    assert list(spill.iterdir()) == []


@pytest.mark.nightly
@pytest.mark.timeout(2 * 3600)
def test_hundreds_of_deaths_and_interrupts(tmp_path: Path) -> None:
    begin, kills, interrupts, folders = time.monotonic(), {}, {}, iter(range(100))

    def folder() -> Path:
        made = tmp_path / str(next(folders))
        made.mkdir()
        return made

    for load in KILLED:
        kills[load] = kill(load, 200, folder())
    for load in INTERRUPTED:
        interrupts[load] = strike("interrupting.py", load, folder(), "timer", 200, SEED)
    wrong = [one for found in interrupts.values() for one in found["wrong"]]
    arrived = sum(found["interrupts"] for found in interrupts.values())
    proof.record(
        "R6", "crash", measure="SIGKILL and Ctrl-C at random moments of a training step, a streamed step and a packing",
        figure=f"{sum(found['kills'] for found in kills.values())} kills: 0 files, 0 bytes of disk left; {arrived} "
               f"interrupts: {len(wrong)} wrong next steps",
        target="200 kills of each: 0 files, 0 bytes held; after an interrupt the next step is right",
        is_met=not wrong, seconds=time.monotonic() - begin, seed=SEED, kills=kills, interrupts=interrupts,
    )  # fmt: skip
    assert not wrong, wrong[:5]
