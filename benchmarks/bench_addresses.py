"""How much memory does a step reserve, at planned addresses and under PyTorch's own allocator?

Records one step (forward and backward) of real models on the CPU, plans its addresses, serves it from a real slab with
patterns in every block, and replays it through models of PyTorch's caching allocator without and with expandable
segments. Nothing is timed, so the numbers are the same on every machine with the same versions.

    python benchmarks/bench_addresses.py --json benchmarks/results/addresses-cpu.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from address_models import MODELS, Step

from memsys.activations.allocations import live_peak, record_allocations
from memsys.planning.addresses import AddressPlan, plan_addresses
from memsys.planning.caching_model import replay_classic, replay_expandable
from memsys.planning.slab_replay import replay_on_slab
from memsys.planning.trace import Request
from memsys.runtimes import runtime_for

_SCALE = 16  # how much larger a GPU's tensors are, see `scaled`


def recorded(model: torch.nn.Module, step: Step) -> tuple[Request, ...]:
    """The second step, when whatever is made once is made."""
    step().backward()
    model.zero_grad(set_to_none=True)
    with record_allocations(model) as record:
        step().backward()
    return record.requests


def scaled(requests: tuple[Request, ...], factor: int) -> tuple[Request, ...]:
    """The same step with larger tensors: what a batch `factor` times as large would ask for, its gradients aside.

    PyTorch's segments of 20 MiB weigh heavily on a small model and little on a large one; both are shown.
    """
    return tuple(Request(r.bytes * factor, r.begin, r.end, r.stream, r.layer, r.phase) for r in requests)


def compared(requests: tuple[Request, ...], factor: int, plan: AddressPlan) -> dict[str, float]:
    """Reserved over live peak, by the two models and by the plan; `factor` makes every request larger."""
    larger = scaled(requests, factor)
    planned = plan if factor == 1 else plan_addresses(larger)
    return {
        "live_peak_bytes": live_peak(larger),
        "planned": planned.peak_bytes / live_peak(larger),
        "expandable": replay_expandable(larger).ratio,
        "classic": replay_classic(larger).ratio,
    }


def measured(name: str, runtime: object) -> dict[str, object]:
    torch.manual_seed(0)
    requests = recorded(*MODELS[name]())
    begin = time.perf_counter()
    plan = plan_addresses(requests)
    seconds = time.perf_counter() - begin
    served = replay_on_slab(plan, runtime)
    return {
        "requests": len(requests),
        "live_peak_bytes": live_peak(requests),
        "bound_bytes": plan.bound_bytes,
        "planned_bytes": plan.peak_bytes,
        "gap": plan.gap,
        "solver": plan.solver,
        "plan_seconds": round(seconds, 2),
        "blocks": len(plan.blocks),
        "blocks_at_bound": sum(block.gap == 0 for block in plan.blocks),
        "worst_block_gap": max((block.gap for block in plan.blocks), default=0.0),
        "served_ratio": served.ratio,
        "served_hits": served.hit_count,
        "served_misses": served.miss_count,
        "device_mallocs": served.upstream_count,
        "as_recorded": compared(requests, 1, plan),
        f"times_{_SCALE}": compared(requests, _SCALE, plan),
    }


def table(results: dict[str, dict]) -> str:
    head = "| model | requests | live peak | plan / bound | served / live | expandable / live | classic / live |"
    rows = [head, "| --- " * 7 + "|"]
    for name, row in results.items():
        small, large = row["as_recorded"], row[f"times_{_SCALE}"]
        rows.append(
            f"| {name} | {row['requests']} | {row['live_peak_bytes'] / 2**20:.0f} MiB | {1 + row['gap']:.4f} | "
            f"{row['served_ratio']:.4f} | {small['expandable']:.3f} ({large['expandable']:.3f}) | "
            f"{small['classic']:.3f} ({large['classic']:.3f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    runtime, _ = runtime_for(torch.device("cpu"))
    results = {}
    for name in arguments.models:
        results[name] = measured(name, runtime)
        print(f"{name}: done", file=sys.stderr)
    print(table(results))
    if arguments.json:
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        arguments.json.write_text(json.dumps({"versions": versions, "models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
