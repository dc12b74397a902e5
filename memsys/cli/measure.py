"""Measures one way of training in one fresh process: `python -m memsys.cli.measure`, driven by memsys.cli.turns.

A process of its own, because a high-water mark and a heap keep the traces of whatever ran before. It prints a line of
JSON when its model is built, one after each step, and the whole result at last; a step starts when a line is read, and
the process ends when its input does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

from memsys.cli.setting import Setting, add_setting_options, positive

# "return_memory" is memsys with that keyword: the other end of its frontier of memory and speed.
MODES = ("plain", "memsys", "return_memory", "checkpoint", "save_on_cpu")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memsys.cli.measure", description=__doc__)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--steps", type=positive, default=3, help="timed steps, after one that is not (%(default)s)")
    add_setting_options(parser)
    return parser


def measure(
    setting: Setting,
    mode: str,
    steps: int = 3,
    wait: Callable[[], None] = lambda: None,
    tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Runs `steps` + 1 training steps in this process, each after `wait()`, and tells of each when it is done.

    Returns: `median_step_s` and `step_s` without the first step, which warms up (and in which memsys learns the
    order); `growth_bytes` over all steps: peak memory over the loaded model with its gradients and optimizer state;
    `loss` of each step; `stats` of memsys.offload, or None.
    """
    from memsys.cli.peak import PeakGrowth
    from memsys.cli.run import Run

    run = Run.build(setting)
    peak = PeakGrowth(run.device)
    tell({"built": mode})
    with contextlib.ExitStack() as stack:
        read_stats = _enter_mode(mode, run, stack)
        results = []
        for step in range(steps + 1):
            wait()
            results.append(run.step(step))
            tell({"step": step})
        growth = peak.growth_bytes()
        stats = read_stats()
    step_s = [seconds for _, seconds in results[1:]]
    return {
        "mode": mode,
        "device": run.device.type,
        "setting": vars(setting),
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


def main() -> int:
    arguments = make_parser().parse_args()

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    def wait() -> None:
        if not sys.stdin.readline():
            raise SystemExit("the process that gives the turns is gone")

    tell(measure(Setting.from_arguments(arguments), arguments.mode, arguments.steps, wait, tell))
    sys.stdin.readline()  # a process that ends is busy for a second, and the turn is another's
    return 0


if __name__ == "__main__":
    sys.exit(main())
