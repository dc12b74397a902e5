"""How does the time to plan a step grow with its saved tensors? One schedule, and a whole plan, for 10^2 to 10^5.

As a script it measures in earnest, prints the slopes of both in a log-log picture (1: linear), and can write all down:

    python benchmarks/bench_planning.py --json planning.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import shown

from memsys.planning.fixed import fixed_plan
from memsys.planning.schedule import schedule
from memsys.planning.solve import solve
from memsys.planning.swap_plan import Budgets, Hardware, Link
from memsys.planning.trace import SegmentRecord, SpanRecord, StepTrace

_COUNTS = (100, 1_000, 3_000, 10_000, 100_000)
_SMOKE_COUNTS = (60, 240)
_ROUNDS = 3
_SPANS = 15  # in a layer
_OP_US = 200.0
_BYTES = 4 << 20
_HARDWARE = Hardware(Link(15e9, 15e9, 20e9, 20.0, 0.1))
_SHARE = 0.4  # of what a step saves: the device budget


def stack_of(count: int) -> StepTrace:
    """A stack of layers alike that saves `count` spans: an input, an attention output, cheap results, and rows."""
    layer_count = max(1, count // _SPANS)
    forward_us = layer_count * _SPANS * _OP_US
    spans, segments = [], []
    for layer in range(layer_count):
        first = layer * _SPANS
        for place in range(_SPANS):
            saved_us = (first + place) * _OP_US
            read_us = forward_us + 2 * (forward_us - saved_us - _OP_US)
            is_cheap, has_rows = place % 5 == 4, place % 5 == 3
            spans.append(SpanRecord(
                first + place, _BYTES * (1 + place % 3), "float32", (1024, 1024 * (1 + place % 3)), "op", layer,
                saved_us, read_us, read_us + 2 * _OP_US, is_layer_input=place == 0, is_attention_output=place == 6,
                remake_us=0.3 * _OP_US if is_cheap else None, remake_inputs=(first + place - 1,) if is_cheap else (),
                segment=layer if has_rows else -1, row_bytes=_BYTES * (1 + place % 3) // 1024 if has_rows else 0,
            ))  # fmt: skip
        begin_us, end_us = first * _OP_US, (first + _SPANS) * _OP_US
        read_us = forward_us + 2 * (forward_us - end_us)
        segments.append(SegmentRecord(
            layer, layer, 1024, 5 * _OP_US, begin_us, end_us, read_us, (first, first + 6)))  # fmt: skip
    return StepTrace("cpu", forward_us, 2 * forward_us, tuple(spans), tuple(segments))


def seconds(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(counts: tuple[int, ...], rounds: int) -> dict[str, object]:
    """By count: seconds to schedule once, to plan, and the plan's gap; and the slopes."""
    rows = []
    for count in counts:
        trace = stack_of(count)
        budgets = Budgets(int(_SHARE * trace.saved_bytes))
        everything = fixed_plan(trace, "all")
        plan = solve(trace, _HARDWARE, budgets)
        rows.append({
            "spans": len(trace.spans),
            "schedule_s": seconds(lambda t=trace, p=everything, b=budgets: schedule(t, p, _HARDWARE, b), rounds),
            "solve_s": seconds(lambda t=trace, b=budgets: solve(t, _HARDWARE, b), rounds),
            "gap": plan.gap, "over_compute": plan.predicted.step_us / (trace.forward_us + trace.backward_us) - 1,
        })  # fmt: skip
    return {"rows": rows, "schedule_slope": slope(rows, "schedule_s"), "solve_slope": slope(rows, "solve_s")}


def slope(rows: list[dict[str, float]], name: str) -> float:
    """Least squares of log time over log count."""
    x, y = [math.log(row["spans"]) for row in rows], [math.log(row[name]) for row in rows]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def report_lines(measured: dict[str, object]) -> list[str]:
    lines = [
        f"{row['spans']:>7} saved tensors: schedule {row['schedule_s'] * 1e3:.1f} ms, plan {row['solve_s']:.2f} s "
        f"(step {row['over_compute']:.1%} over compute, at most {row['gap']:.1%} over the best)"
        for row in measured["rows"]
    ]
    return [
        *lines,
        f"slopes: schedule {measured['schedule_slope']:.2f}, plan {measured['solve_slope']:.2f} (1: linear)",
    ]


def test_planning(benchmark, capsys) -> None:
    """Two small sizes; both plans hold and are bounded."""
    measured = benchmark.pedantic(measure, args=(_SMOKE_COUNTS, 1), rounds=1, iterations=1)
    benchmark.extra_info.update(measured)
    shown.show(capsys, *report_lines(measured), "(smoke size: these figures mean nothing)")
    assert [row["spans"] for row in measured["rows"]] == list(_SMOKE_COUNTS)
    assert all(row["gap"] >= 0 for row in measured["rows"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured to FILE")
    arguments = parser.parse_args()
    measured = measure(_COUNTS, _ROUNDS)
    print(*report_lines(measured), sep="\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
