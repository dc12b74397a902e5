"""Runs a range of seeds with the package found in one folder, in a process of its own, and prints what came of them.

python -P seed_runner.py TREE '{"walks": [0, 700], "programs": [0, 300], "stops": true, "shrinks": true}'
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# What counts as a kill; anything else that fails is a broken mutant.
KILLS = ("order", "gradient", "bytes", "bound")


def run_jobs(tree: Path, jobs: Sequence[dict[str, Any]], timeout_s: float) -> list[dict[str, Any]]:
    """What the seeds of each job gave: failures, counts, a digest of all schedules. The jobs run beside each other;
    none outlives this call."""
    with ExitStack() as stack:
        running = [stack.enter_context(_start(tree, job)) for job in jobs]
        for process in running:
            stack.callback(process.kill)
        deadline = time.monotonic() + timeout_s
        return [_finish(process, deadline) for process in running]


def _start(tree: Path, job: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", __file__, str(tree), json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    out, error = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    if process.returncode != 0:
        raise RuntimeError(f"the seeds' process ended with {process.returncode}:\n{error[-4000:]}")
    return json.loads(out.splitlines()[-1])


def main(tree: str, job: dict[str, Any]) -> None:
    sys.path[:0] = [tree, str(Path(__file__).parent)]
    import torch

    torch.set_num_threads(1)
    found = {"walks": 0, "programs": 0, "operations": 0, "digest": 0, "failures": []}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as spill_folder:
        for level, run in (("walks", run_walk), ("programs", run_program)):
            for seed in range(*job.get(level, (0, 0))):
                failure = run(seed, found, job, spill_folder)
                found[level] += 1
                if failure:
                    found["failures"].append({"level": level, "seed": seed, **failure})
                if is_enough(found["failures"], job, level):
                    break
    found["seconds"] = round(time.monotonic() - begin, 2)
    print(json.dumps(found))


def is_enough(failures: list[dict[str, Any]], job: dict[str, Any], level: str) -> bool:
    killed = [one for one in failures if one["level"] == level and one["kind"] in KILLS]
    return len(failures) >= 50 or (bool(job.get("stops")) and bool(killed))


def run_walk(seed: int, found: dict[str, Any], job: dict[str, Any], spill_folder: str) -> dict[str, Any] | None:
    import engine_walk

    kind, message, digest = engine_walk.run(seed, spill_folder)
    found["digest"] = hash((found["digest"], digest))
    return {"kind": kind, "message": message} if kind else None


def run_program(seed: int, found: dict[str, Any], job: dict[str, Any], _: str) -> dict[str, Any] | None:
    import stream_scenario
    from shrink import shrink

    outcome = stream_scenario.run(stream_scenario.draw(seed))
    found["digest"] = hash((found["digest"], outcome.digest))
    found["operations"] += outcome.operation_count
    if not outcome.kind:
        return None
    failure = {"kind": outcome.kind, "message": outcome.message, "program": str(outcome.program)}
    if job.get("shrinks") and outcome.kind in KILLS:
        least = shrink(outcome.program, lambda program: stream_scenario.run(program).kind == outcome.kind)
        failure |= {"least": str(least), "least_actions": len(least.actions), "actions": len(outcome.program.actions)}
    return failure


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
