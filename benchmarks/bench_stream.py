"""What does a window of layers cost and save, by its size, and what do other ways to train from a file?

As a script it measures in earnest; every mode is a process of its own, and the processes take a step in turn:

    python benchmarks/bench_stream.py --layers 24 --modes resident memsys-1 memsys-3 memsys-12 mmap accelerate

With --limit every mode but `resident` runs in a control group of so much memory, page cache included.
Each memsys step is shown beside its floor: the larger of the resident model's step and the bytes it read over the rate
that the same reader reaches on the same file, cold, in the same run. As a pytest item it is one step of a small stack.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shown
import stream_worker
import torch
from bench_swap import machine
from memory_limit import LimitedGroup, limited

import memsys
from memsys import _C, _tensor
from memsys.budget import default_spill_dir, format_bytes, parse_budget
from memsys.cli.console import plain_table
from memsys.runtimes import runtime_for

MODES = ("resident", "memsys-1", "memsys-3", "mmap", "accelerate")
COLUMNS = (
    "mode",
    "step",
    "to resident",
    "floor",
    "to floor",
    "read a step",
    "memory growth",
    "page cache",
    "charged",
    "losses",
)


def write_file(folder: str, layers: int, width: int, dtype: torch.dtype) -> str:
    """The packed file of the frozen weights."""
    path = str(Path(folder) / "frozen.safetensors")
    memsys.pack_weights(dict(stream_worker.frozen_weights(layers, width, dtype)), path)
    return path


def read_rate(path: str) -> float:
    """Bytes a second of the whole file, past the page cache, in spans of the size of a block's matrices."""
    runtime, _ = runtime_for(torch.device("cpu"))
    file = _C.WeightFile(runtime, path, verify=_C.Verify.never)
    target = torch.empty(max(tensor["bytes"] for tensor in file.tensors) + 8192, dtype=torch.uint8)
    rates = []
    for _ in range(3):
        begin, total = time.perf_counter(), 0
        for tensor in file.tensors:
            file.read(tensor["offset"], tensor["bytes"], _tensor.pointer_of(target))
            total += tensor["bytes"]
        rates.append(total / (time.perf_counter() - begin))
    return statistics.median(rates)


class Worker:
    """One process of stream_worker; it ends with the context."""

    def __init__(self, mode: str, arguments: list[str], group: LimitedGroup | None = None) -> None:
        self.mode = mode
        self.group = group
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  __exit__ closes it
        here = Path(__file__).parent
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(memsys.__file__).parents[1]), str(here)])}
        command = [sys.executable, "-P", str(here / "stream_worker.py"), "--mode", mode, *arguments]
        self._process = subprocess.Popen(
            command if group is None else group.command(command),
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, line: str | None) -> dict[str, Any]:
        """What the worker answers to a line. Raises RuntimeError, with its last words, if it ended."""
        if line is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"{self.mode} ended: {self._errors.read()[-2000:]}")
        return json.loads(answer)


def measure(modes: Sequence[str], layers: int, width: int, batch: int, seq: int, dtype: str, steps: int,
            folder: str, limit_bytes: int | None = None) -> dict[str, Any]:  # fmt: skip
    """For each mode its steps in seconds (without the first), losses, memory and counts; and the file's rate."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = write_file(inside, layers, width, getattr(torch, dtype))
        options = ["--file", path, "--dtype", dtype]
        for name, value in (("layers", layers), ("width", width), ("batch", batch), ("seq", seq)):
            options += [f"--{name}", str(value)]
        drop_cache(path)  # else its pages would be charged to this process, and free to the others
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(start(mode, options, limit_bytes, stack)) for mode in modes]
            results = take_turns(workers, steps)
        return {"machine": machine(), "layers": layers, "width": width, "tokens": batch * seq, "dtype": dtype,
                "limit_bytes": limit_bytes, "steps": steps, "file_bytes": Path(path).stat().st_size,
                "rate_bytes_per_s": read_rate(path), "modes": results}  # fmt: skip


def drop_cache(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def start(mode: str, options: list[str], limit_bytes: int | None, stack: contextlib.ExitStack) -> Worker:
    is_free = limit_bytes is None or mode == "resident"
    return Worker(mode, options, None if is_free else stack.enter_context(limited(limit_bytes)))


def take_turns(workers: list[Worker], steps: int) -> dict[str, dict[str, Any]]:
    """What each worker tells in the end; of one that was ended by the limit, that it was."""
    results: dict[str, dict[str, Any]] = {}
    for turn, line in enumerate((None, *["step"] * (steps + 1), "end")):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            if worker.mode not in results:
                answer = _answer(worker, line)
                if line == "end" or "ended" in answer:
                    results[worker.mode] = answer
    for worker in workers:
        if worker.group is not None:
            results[worker.mode]["charged_bytes"] = worker.group.peak_bytes()
    return {worker.mode: results[worker.mode] for worker in workers}


def _answer(worker: Worker, line: str | None) -> dict[str, Any]:
    try:
        return worker.ask(line)
    except RuntimeError as error:
        if worker.group is None:
            raise
        return {"mode": worker.mode, "ended": str(error)}


def rows(measured: dict[str, Any]) -> list[list[str]]:
    """The table: medians over the steps after the first."""
    alive = {mode: result for mode, result in measured["modes"].items() if "ended" not in result}
    steps = {mode: statistics.median(result["seconds"][1:]) for mode, result in alive.items()}
    resident = steps.get("resident")
    losses = next(iter(alive.values()))["losses"]
    table = [_row(mode, result, steps[mode], resident, losses, measured) for mode, result in alive.items()]
    return table + [
        [mode, "ended by the limit", *[""] * (len(COLUMNS) - 2)] for mode in measured["modes"] if mode not in alive
    ]


def _row(mode: str, result: dict[str, Any], step: float, resident: float | None, losses: list[float],
         measured: dict[str, Any]) -> list[str]:  # fmt: skip
    floor, read = "", ""
    if "stats" in result and resident is not None:
        stats = result["stats"]
        count = stats["block_count"] - stats["window_layers"]
        step_bytes = 2 * count * stats["read_bytes"] / max(1, stats["load_count"])
        read = format_bytes(step_bytes)
        io = step_bytes / measured["rate_bytes_per_s"]
        floor = resident + io if stats["window_layers"] == 1 else max(resident, io)
    to_floor = f"{step / floor:.2f}x" if floor else ""
    charged = format_bytes(result["charged_bytes"]) if "charged_bytes" in result else ""
    return [mode, f"{step:.3f} s", f"{step / resident:.2f}x" if resident else "", f"{floor:.3f} s" if floor else "",
            to_floor, read, format_bytes(result["growth_bytes"]), format_bytes(result["cached_bytes"]), charged,
            "equal" if result["losses"] == losses else "DIFFER"]  # fmt: skip


def test_stream(benchmark, capsys, tmp_path: Path) -> None:
    """Every mode does a step; what memsys reads and gives is right."""
    arguments = (MODES, 4, 128, 1, 64, "float32", 2, str(tmp_path))
    measured = benchmark.pedantic(measure, args=arguments, rounds=1, iterations=1)
    shown.show(capsys, plain_table("streaming", COLUMNS, rows(measured)), "(smoke size: these figures mean nothing)")
    results = measured["modes"]
    assert all(result["losses"] == results["resident"]["losses"] for result in results.values())
    assert results["memsys-3"]["stats"]["load_count"] == (2 * 4 - 3) + 2 * 2 * (4 - 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 24), ("width", 1024), ("batch", 1), ("seq", 512), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", default=default_spill_dir(), help="for the file: on a disk, not in memory")
    parser.add_argument("--limit", help='memory of each process, page cache included, such as "1GiB"; needs root')
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    measured = measure(options.modes, options.layers, options.width, options.batch, options.seq, options.dtype,
                       options.steps, options.folder, parse_budget(options.limit, lambda: 0))  # fmt: skip
    rate = measured["rate_bytes_per_s"]
    title = f"{options.layers} blocks, file {format_bytes(measured['file_bytes'])}, read at {rate / 1e9:.2f} GB/s"
    print(plain_table(title, COLUMNS, rows(measured)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
