"""Draws memory over a training step with and without memsys, docs/memory.png, from a real run of each.

    python benchmarks/plot_memory.py --layers 12 --seq 2048

Each mode trains in a fresh process that samples its own resident memory; the last step is drawn. What the C library
keeps of freed memory is resident, so a later step begins above zero (`--steps 1` draws the first). Needs matplotlib
(`pip install '.[plot]'`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from memsys.cli.setting import Setting, add_setting_options, positive

_PICTURE = Path(__file__).resolve().parents[1] / "docs" / "memory.png"
_MODES = ("plain", "memsys")
_LABELS = {"plain": "without memsys", "memsys": "with memsys"}
_COLOURS = {"plain": "#b3541e", "memsys": "#1e6f8c"}
_INTERVAL_S = 0.01
_DEFAULTS = Setting(layers=12, device="cpu", policy="all")


class Sampler:
    """Reads this process's resident bytes every 10 ms while a context is open; `samples` holds (seconds, bytes)."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._stopping = threading.Event()
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with open("/proc/self/statm") as statm:
            while not self._stopping.wait(_INTERVAL_S):
                statm.seek(0)
                resident_bytes = int(statm.read().split()[1]) * self._page_bytes
                self.samples.append((time.perf_counter(), resident_bytes))


def sample_steps(setting: Setting, mode: str, steps: int) -> dict[str, Any]:
    """Trains in this process; returns the last step's samples, in seconds since it began and bytes over the start."""
    import memsys
    from memsys.cli.peak import PeakGrowth
    from memsys.cli.run import Run

    run = Run.build(setting)
    baseline_bytes = PeakGrowth(run.device).baseline_bytes
    with contextlib.ExitStack() as stack:
        if mode == "memsys":
            memsys.offload(run.model, **setting.offload_keywords())
            stack.callback(memsys.restore, run.model)
        for step in range(steps - 1):
            run.step(step)
        with Sampler() as sampler:
            started = time.perf_counter()
            loss, seconds = run.step(steps - 1)
    samples = [(at - started, resident - baseline_bytes) for at, resident in sampler.samples if at >= started]
    return {"mode": mode, "loss": loss, "seconds": seconds, "samples": samples}


def sample_in_process(setting: Setting, mode: str, steps: int) -> dict[str, Any]:
    """`sample_steps` in a fresh process; raises CalledProcessError with the worker's output shown."""
    command = [sys.executable, __file__, "--worker", mode, "--steps", str(steps), *setting.to_argv()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(sampled: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    """One line per mode: time in the step across, resident memory over the loaded model up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=120)
    for result in sampled:
        mode = result["mode"]
        seconds, resident = zip(*result["samples"], strict=True)
        mebibytes = [value / (1 << 20) for value in resident]
        returns = ", return_memory=True" if mode == "memsys" and setting.return_memory else ""
        axes.plot(seconds, mebibytes, color=_COLOURS[mode], label=_LABELS[mode] + returns, linewidth=1.8)
        axes.fill_between(seconds, mebibytes, color=_COLOURS[mode], alpha=0.12, linewidth=0)
    axes.set(xlabel="seconds since the step began", ylabel="MiB over the loaded model", title=setting.describe())
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=3, help="steps in each process, the last drawn (%(default)s)")
    parser.add_argument("--output", type=Path, default=_PICTURE, metavar="FILE", help="the picture (%(default)s)")
    parser.add_argument("--worker", choices=_MODES, help=argparse.SUPPRESS)
    add_setting_options(parser, _DEFAULTS)
    arguments = parser.parse_args()
    setting = Setting.from_arguments(arguments)
    if arguments.worker is not None:
        print(json.dumps(sample_steps(setting, arguments.worker, arguments.steps)), flush=True)
        return 0
    sampled = [sample_in_process(setting, mode, arguments.steps) for mode in _MODES]
    if sampled[0]["loss"] != sampled[1]["loss"]:
        print(f"the losses differ: {[result['loss'] for result in sampled]}", file=sys.stderr)
        return 1
    draw(sampled, setting, arguments.output)
    for result in sampled:
        peak = max(resident for _, resident in result["samples"])
        print(f"{_LABELS[result['mode']]}: {peak / (1 << 20):.0f} MiB at most, {result['seconds']:.2f} s")
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
