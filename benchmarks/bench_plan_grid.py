"""Is a plan as fast as the best fixed way that fits its budget, and does it come to what it predicted? A grid of
models, lengths and budgets on the CPU.

    python benchmarks/bench_plan_grid.py --json grid.json            # goes on where an earlier run stopped
    python benchmarks/bench_plan_grid.py --json grid.json --cells gpt/1024 llama

Of one model and length all ways step in turn, in one process; a figure is the median over the rounds. The fixed ways
are: keep all, checkpoint each layer, move all within the budget, move layer inputs and attention outputs alone. What
doesn't fit the budget (by counted bytes) is no rival.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import plan_models
import shown
import torch
from plan_models import Case

import memsys
from memsys.cli.console import plain_table
from memsys.planning.plan import Plan

SHARES = (0.2, 0.4, 0.6, 0.8)  # budgets, of what a step saves
_ROUNDS = 5
_WARM_STEPS = 2
_WITHIN, _BELOW = 1.03, 0.9
_FIXED = ("keep all", "checkpoint all", "inputs only")


class Way:
    """One way to train a copy of the case's model."""

    def __init__(self, name: str, case: Case, prepare: Callable[[torch.nn.Module], object]) -> None:
        self.name = name
        self._case = case
        self.model = copy.deepcopy(case.model)
        prepare(self.model)
        self.seconds: list[float] = []
        self.error: str | None = None

    def step(self, is_timed: bool) -> None:
        """One forward and backward; a way that runs out of its budget is out."""
        if self.error is not None:
            return
        self.model.zero_grad()
        begin = time.perf_counter()
        try:
            self._case.loss(self.model).backward()
        except memsys.BudgetError as error:
            self.error = str(error)
            return
        if is_timed:
            self.seconds.append(time.perf_counter() - begin)

    def result(self, peak_bytes: int | None = None) -> dict[str, Any]:
        if self.error is not None:
            return {"error": self.error}
        if peak_bytes is None:
            peak_bytes = memsys.stats(self.model).peak_device_bytes
        return {"median_s": statistics.median(self.seconds), "seconds": self.seconds, "peak_bytes": peak_bytes}


def measure_case(case: Case, shares: Sequence[float], rounds: int, spill_dir: str | None) -> Iterator[dict[str, Any]]:
    """A cell for each budget."""
    options = {"min_bytes": plan_models.MIN_BYTES, "spill_dir": spill_dir}
    trace = memsys.plan(case.model, case.args, loss=case.scalar, device_budget=1 << 40, **options).trace
    checkpoint_bytes = plan_models.checkpoint_peak(trace)
    fixed = [
        Way("keep all", case, lambda model: model),
        Way("checkpoint all", case, plan_models.checkpoint_layers),
        Way("inputs only", case, lambda model: memsys.offload(model, policy="inputs", **options)),
    ]
    budgets = [int(share * trace.saved_bytes) for share in shares]
    plans: list[Plan | str] = [_plan_or_reason(case, budget, options) for budget in budgets]
    pairs = []
    for budget, plan in zip(budgets, plans, strict=True):
        moved = Way("swap all", case, lambda m, b=budget: memsys.offload(m, policy="all", device_budget=b, **options))
        planned = None
        if isinstance(plan, Plan):
            planned = Way("plan", case, lambda m, p=plan: memsys.offload(m, plan=p, spill_dir=spill_dir))
        pairs.append((moved, planned))
    ways = [*fixed, *(way for pair in pairs for way in pair if way is not None)]
    for turn in range(_WARM_STEPS + rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            way.step(turn >= _WARM_STEPS)
    peaks = {"keep all": trace.saved_bytes, "checkpoint all": checkpoint_bytes}
    common = {way.name: way.result(peaks.get(way.name)) for way in fixed}
    for share, budget, plan, (moved, planned) in zip(shares, budgets, plans, pairs, strict=True):
        cell = {"cell": f"{case.name}/{case.length}/{share}", "budget_bytes": budget, "saved_bytes": trace.saved_bytes,
                "span_count": len(trace.spans), "ways": common | {"swap all": moved.result()}}  # fmt: skip
        yield cell | (_of_plan(plan, planned) if planned is not None else {"no_plan": plan})


def _plan_or_reason(case: Case, budget: int, options: dict[str, Any]) -> Plan | str:
    try:
        return memsys.plan(case.model, case.args, loss=case.scalar, device_budget=budget, **options)
    except memsys.BudgetError as error:
        return str(error)


def _of_plan(plan: Plan, planned: Way) -> dict[str, Any]:
    predicted, link = plan.swap.predicted, plan.hardware.file
    return {
        "plan": planned.result(),
        "predicted": {"step_s": predicted.step_us / 1e6, "peak_bytes": predicted.peak_device_bytes},
        "bound_s": plan.swap.bound_us / 1e6,
        "solve_s": plan.swap.solve_us / 1e6,
        "choices": {choice.value: plan.swap.choices.count(choice) for choice in set(plan.swap.choices)},
        "link": None if link is None else vars(link),
    }


def fitting(cell: dict[str, Any]) -> dict[str, float]:
    """The medians of the fixed ways that fit the cell's budget."""
    return {
        name: way["median_s"]
        for name, way in cell["ways"].items()
        if "median_s" in way and way["peak_bytes"] <= cell["budget_bytes"]
    }


def summary(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What the grid shows, a line each."""
    planned = [cell for cell in cells if "median_s" in cell.get("plan", {})]
    if not planned:
        return [f"{len(cells)} cells, none with a plan"]
    held = sum(cell["plan"]["peak_bytes"] <= cell["budget_bytes"] for cell in planned)
    peak = [abs(cell["predicted"]["peak_bytes"] / cell["plan"]["peak_bytes"] - 1) for cell in planned]
    step = [abs(cell["predicted"]["step_s"] / cell["plan"]["median_s"] - 1) for cell in planned]
    rivals = [(cell["plan"]["median_s"], fitting(cell)) for cell in planned]
    contested = [(own, fixed) for own, fixed in rivals if fixed]
    ratios = [own / min(fixed.values()) for own, fixed in contested]
    lines = [
        f"{len(cells)} cells, {len(planned)} planned; budgets held in {held}",
        f"predicted peak off by {statistics.median(peak):.1%} (median), step by {statistics.median(step):.1%} (median)",
        f"solved in {statistics.median(cell['solve_s'] for cell in planned) * 1e3:.0f} ms (median)",
    ]
    if ratios:
        within = sum(ratio <= _WITHIN for ratio in ratios)
        below = sum(all(own <= _BELOW * other for other in fixed.values()) for own, fixed in contested)
        lines += [
            f"over the best fixed way that fits: {statistics.median(ratios):.3f} (median), {max(ratios):.3f} (worst)",
            f"at most 3 % above it in {within} of {len(ratios)}; 10 % below every one in {below}",
        ]
    return lines


def table(cells: Sequence[dict[str, Any]]) -> str:
    columns = ("cell", "budget MiB", "plan s", "predicted s", *_FIXED, "swap all")
    rows = []
    for cell in cells:
        ways = fitting(cell)
        own, predicted = cell.get("plan", {}).get("median_s"), cell.get("predicted", {}).get("step_s")
        rows.append([cell["cell"], f"{cell['budget_bytes'] / (1 << 20):.0f}", *map(_seconds, (own, predicted)),
                     *(_seconds(ways.get(name)) for name in columns[4:])])  # fmt: skip
    return plain_table("seconds a step; -: does not fit", columns, rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def run_grid(path: Path, wanted: Sequence[str], rounds: int, spill_dir: str | None) -> list[dict[str, Any]]:
    """Measures what `path` does not hold yet, and writes after each model and length."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, length in plan_models.GRID:
        names = [f"{name}/{length}/{share}" for share in SHARES]
        if (wanted and not any(f"{name}/{length}/".startswith(f"{cell}/") for cell in wanted)) or (
            all(cell in found for cell in names)
        ):
            continue
        for cell in measure_case(plan_models.make(name, length), SHARES, rounds, spill_dir):
            found[cell["cell"]] = cell
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(table([found[cell] for cell in names]), flush=True)
    return list(found.values())


def test_plan_grid(benchmark, capsys, tmp_path: Path) -> None:
    """One small model, two budgets; budgets hold."""
    case = plan_models.make("gpt", 128, is_smoke=True)

    def run() -> list[dict[str, Any]]:
        return list(measure_case(case, (0.4, 0.8), 1, str(tmp_path)))

    cells = benchmark.pedantic(run, rounds=1, iterations=1)
    shown.show(capsys, table(cells), *summary(cells), "(smoke size: these figures mean nothing)")
    assert all(cell["plan"]["peak_bytes"] <= cell["budget_bytes"] for cell in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="holds the cells measured so far")
    parser.add_argument("--cells", nargs="*", default=(), metavar="MODEL[/LENGTH]", help="only these")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--spill-dir")
    arguments = parser.parse_args()
    cells = run_grid(arguments.json, arguments.cells, arguments.rounds, arguments.spill_dir)
    print(*summary(cells), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
