"""Measures one way of training in one fresh process, and prints one JSON line: `python -m memsys.cli.measure`.

A process of its own, because a high-water mark and a heap keep the traces of whatever ran before.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memsys.cli.setting import Setting, add_setting_options, positive

# "return_memory" is memsys with that keyword: the other end of its frontier of memory and speed.
MODES = ("plain", "memsys", "return_memory", "checkpoint", "save_on_cpu")


class MeasureError(RuntimeError):
    """A worker process failed; the message carries its last line."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memsys.cli.measure", description=__doc__)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--steps", type=positive, default=3, help="timed steps, after one that is not (%(default)s)")
    parser.add_argument("--mmap-threshold", type=int, metavar="BYTES", help="fix glibc's mmap threshold (untouched)")
    add_setting_options(parser)
    return parser


def measure(setting: Setting, mode: str, steps: int = 3, mmap_threshold: int | None = None) -> dict[str, Any]:
    """Runs `steps` + 1 training steps in this process.

    Returns: `median_step_s` and `step_s` without the first step, which warms up (and in which memsys learns the
    order); `growth_bytes` over all steps: peak memory over the loaded model with its gradients and optimizer state;
    `loss` of each step; `stats` of memsys.offload, or None.
    """
    from memsys.cli.peak import PeakGrowth, fix_mmap_threshold

    if mmap_threshold is not None:
        fix_mmap_threshold(mmap_threshold)
    from memsys.cli.run import Run

    run = Run.build(setting)
    peak = PeakGrowth(run.device)
    with contextlib.ExitStack() as stack:
        read_stats = _enter_mode(mode, run, stack)
        results = [run.step(step) for step in range(steps + 1)]
        growth = peak.growth_bytes()
        stats = read_stats()
    step_s = [seconds for _, seconds in results[1:]]
    return {
        "mode": mode,
        "device": run.device.type,
        "setting": vars(setting),
        "mmap_threshold": mmap_threshold,
        "median_step_s": statistics.median(step_s),
        "step_s": step_s,
        "growth_bytes": growth,
        "growth_since": "model loaded" if peak.is_reset else "process start",
        "baseline_bytes": peak.baseline_bytes,
        "loss": [loss for loss, _ in results],
        "stats": stats,
    }


def _enter_mode(mode: str, run: Any, stack: contextlib.ExitStack) -> Callable[[], dict[str, int] | None]:
    """Changes the run's model into `mode` until `stack` closes; returns what reads the mode's counters."""
    import torch
    from torch.utils.checkpoint import checkpoint

    if mode == "checkpoint":
        for block in run.model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    elif mode == "save_on_cpu":
        hooks = functools.partial(torch.autograd.graph.save_on_cpu, pin_memory=run.device.type == "cuda")
        run.model.forward = _inside(hooks, run.model.forward)
    elif mode in ("memsys", "return_memory"):
        import memsys
        from memsys.cli.native import stats_of

        keywords = run.setting.offload_keywords()
        memsys.offload(run.model, **(keywords | {"return_memory": True} if mode == "return_memory" else keywords))
        stack.callback(memsys.restore, run.model)
        return lambda: stats_of(run.model)
    return lambda: None


def _inside(make_context: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with make_context():
            return function(*args, **kwargs)

    return call


def measure_in_process(
    setting: Setting, mode: str, steps: int = 3, mmap_threshold: int | None = None
) -> dict[str, Any]:
    """`measure` in a fresh process of this Python, with this very memsys. Raises MeasureError."""
    command = [sys.executable, "-P", "-m", "memsys.cli.measure", "--mode", mode, "--steps", str(steps)]
    if mmap_threshold is not None:
        command += ["--mmap-threshold", str(mmap_threshold)]
    # -P and the path: a source folder in the current directory must not stand in for the memsys that runs here.
    package_folder = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command + setting.to_argv(), env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MeasureError(f"measuring {mode} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    arguments = make_parser().parse_args()
    setting = Setting.from_arguments(arguments)
    print(json.dumps(measure(setting, arguments.mode, arguments.steps, arguments.mmap_threshold)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
