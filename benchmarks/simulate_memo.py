"""Does a simulation with inputs from elsewhere come to what "MEMO" (Zhao et al., SIGMOD 2025) published?

Prints the tables of docs/memo.md: the inputs with their sources (none of them is MEMO's time or rate), what is exact,
the crossover by link rate, GPT 7B at a million tokens on 8 A800, and who wins on each side of the crossover.
`--write` puts them into the document, `--json` prints the numbers, `--plan` adds memsys's planner to the last table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memsys.planning import memo
from memsys.planning.compute import ComputeModel, Load
from memsys.planning.decoder import Kind, layer_units
from memsys.planning.gpus import find_machine
from memsys.planning.hardware import Corner, Figure, Machine, exactly
from memsys.planning.shapes import SHAPES
from memsys.planning.simulation import Limits, Simulation, simulate_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "memo.md"
SHAPE, MACHINE, GPUS = SHAPES["gpt-7b"], find_machine("a800"), 8
MILLION = 1 << 20
# Section 4.1 of the paper: "2TB in our environment", half of 4096 GB.
HOST_BYTES = (2 << 40) // GPUS
PUBLISHED_MFU, PUBLISHED_CROSSOVER = 0.5230, 192 << 10
LINK_RATES = (8e9, 11e9, 12.5e9, 18e9, 25e9)
LENGTHS = tuple(count << 10 for count in (16, 32, 64, 128, 192, 256, 512, 1024))
USED = ("peak_flops", "gemm_share", "attention_forward_share", "attention_backward_share", "memory_rate",
        "memory_share", "collective_rate", "out_rate", "in_rate")  # fmt: skip


def model_at(seq: int, corner: Corner = Corner.MIDDLE, machine: Machine = MACHINE) -> ComputeModel:
    return ComputeModel(SHAPE, machine.rates(corner), Load(seq, 1, GPUS))


def stepped(seq: int, policy: str, corner: Corner = Corner.MIDDLE, machine: Machine = MACHINE, **options) -> Simulation:
    """A step with the paper's host memory."""
    limits = Limits(host=options.pop("host_bytes", HOST_BYTES), file=0)
    machine = replace(machine, file_out_rate=None, file_in_rate=None)
    return simulate_model(model_at(seq, corner, machine), machine, policy, limits, **options)


def inputs() -> list[dict[str, Any]]:
    found = MACHINE.figures()
    return [{"input": name, "low": found[name].low, "middle": found[name].value, "high": found[name].high,
             "source": found[name].source} for name in USED]  # fmt: skip


def exact() -> list[dict[str, Any]]:
    """What no rate enters, and what the closed forms say of it."""
    sizes, million = memo.layer_bytes(model_at(MILLION)), model_at(MILLION)
    shares = []
    for corner in (Corner.HIGH, Corner.LOW):
        times = model_at(576 << 10, corner).layer_times()
        shares.append(times.attention_us / times.forward_us)
    rows = [
        ("saved elements of a layer, in b·s·h", "16", f"{layer_units(SHAPE):g}"),
        ("saved bytes, 7B, one sequence of 2^20", "4096 GB", f"{memo.skeletal_bytes(SHAPE, MILLION) >> 30} GiB"),
        ("attention output, of all saved bytes", "6.25%", f"{sizes.must / sizes.total / 2:.2%}"),
        ("layer inputs of all layers, one GPU of 8", "16 GB",
         f"{SHAPE.layers * sizes.must // 2 >> 30} GiB: 4096 / 16 / 8"),
        ("alpha that 2 TiB of host memory allow at 2^20", "(2048 / 30 - 16) / 112 = 46.7%",
         f"{memo.alpha_by_host(million, HOST_BYTES):.1%}"),
        ("attention's share of a layer's forward at 576K", "over 90%", f"{shares[0]:.1%} to {shares[1]:.1%}"),
    ]  # fmt: skip
    return [{"what": what, "paper": paper, "here": here} for what, paper, here in rows]


def crossovers() -> list[dict[str, Any]]:
    """By link rate, the length from which a layer's forward hides the swap of everything; slow compute hides more."""
    rows = []
    for rate in LINK_RATES:
        low, middle, high = (memo.crossover_seq(SHAPE, MACHINE.rates(corner), GPUS, rate)
                             for corner in (Corner.LOW, Corner.MIDDLE, Corner.HIGH))  # fmt: skip
        rows.append({"link_rate": rate, "slow": low, "middle": middle, "fast": high,
                     "holds_192k": low <= PUBLISHED_CROSSOVER <= high})  # fmt: skip
    return rows


def crossover_rates() -> dict[str, float]:
    """The link rates at which the paper's 192K is the crossover."""
    return {corner.name.lower(): memo.crossover_rate(SHAPE, MACHINE.rates(corner), PUBLISHED_CROSSOVER, GPUS)
            for corner in Corner}  # fmt: skip


def million() -> dict[str, Any]:
    """The headline: GPT 7B at 2^20 tokens on 8 A800, token-wise, at the corners of all inputs and of each alone."""
    found = {corner.name.lower(): stepped(MILLION, "tokenwise", corner) for corner in Corner}
    alone = {}
    for name in USED:
        figure = getattr(MACHINE, name)
        ends = (replace(figure, value=end, low=end, high=end) for end in (figure.low, figure.high))
        mfus = [stepped(MILLION, "tokenwise", machine=replace(MACHINE, **{name: end})).mfu for end in ends]
        alone[name] = {"low": min(mfus), "high": max(mfus)}
    low, middle, high = (found[name] for name in ("low", "middle", "high"))
    return {
        "mfu": {"low": low.mfu, "middle": middle.mfu, "high": high.mfu},
        "published_mfu": PUBLISHED_MFU,
        "is_inside": low.mfu <= PUBLISHED_MFU <= high.mfu,
        "alpha": middle.alpha,
        "step_s": {name: one.step_us / 1e6 for name, one in found.items()},
        "stall_s": middle.exposed_us / 1e6,
        "peak_device_gib": middle.peak_bytes["device"] / 2**30,
        "peak_host_gib_all_gpus": GPUS * middle.peak_bytes["host"] / 2**30,
        "fits": middle.fits,
        "parts_s": parts(middle),
        "alone": alone,
    }


def parts(simulation: Simulation) -> dict[str, float]:
    """Where the time of a step goes, in seconds."""
    model, found = model_at(simulation.seq), dict.fromkeys((kind.value for kind in Kind), 0.0)
    for operation in model.layer.operations:
        both = model.forward_us(operation) + model.backward_us(operation)
        found[operation.kind.value] += SHAPE.layers * both / 1e6
    found["computing again"] = simulation.remade_us / 1e6
    found["waiting"] = simulation.exposed_us / 1e6
    found["head and optimizer"] = simulation.step_us / 1e6 - sum(found.values())
    return found


def winners(link: Figure, with_plan: bool = False) -> list[dict[str, Any]]:
    """Steps by length and policy, and the fastest that fits (None as MFU: it does not fit)."""
    rows, machine = [], replace(MACHINE, out_rate=link, in_rate=link)
    for seq in LENGTHS:
        tried = {
            "full swap": stepped(seq, "tokenwise", machine=machine, alpha=1.0),
            "full recompute": stepped(seq, "checkpoint", machine=machine),
            "token-wise": stepped(seq, "tokenwise", machine=machine),
        }
        if with_plan:
            tried["memsys plan"] = stepped(seq, "plan", machine=machine)
        mfus = {name: one.mfu if one.fits else None for name, one in tried.items()}
        best = max(mfu for mfu in mfus.values() if mfu is not None)
        rows.append({"seq": seq, "alpha": tried["token-wise"].alpha, "mfu": mfus,
                     "fastest": [name for name, mfu in mfus.items() if mfu == best]})  # fmt: skip
    return rows


def study(with_plan: bool = False) -> dict[str, Any]:
    """Everything that is printed, as numbers."""
    link = MACHINE.out_rate
    return {"inputs": inputs(), "exact": exact(), "crossovers": crossovers(), "crossover_rates": crossover_rates(),
            "million": million(), "winners": winners(link, with_plan),
            "winners_slow_link": winners(exactly(link.low, link.source), with_plan)}  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))


def markdown(found: dict[str, Any]) -> dict[str, str]:
    """The tables of the document, by their marks."""
    headline, rates = found["million"], found["crossover_rates"]
    mfu = headline["mfu"]
    where = "inside" if headline["is_inside"] else "OUTSIDE"
    spread = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in headline["parts_s"].items())
    return {
        "inputs": table(
            ("input", "low", "middle", "high", "source"),
            [[row["input"], *(f"{row[end]:.4g}" for end in ("low", "middle", "high")), row["source"]]
             for row in found["inputs"]]),
        "exact": table(("what", "paper", "here"), [list(row.values()) for row in found["exact"]]),
        "crossover": table(
            ("link, GB/s", "crossover, slow compute", "middle", "fast compute", "192K inside"),
            [[f"{row['link_rate'] / 1e9:g}", *(f"{row[end] / 1024:.0f}K" for end in ("slow", "middle", "fast")),
              "yes" if row["holds_192k"] else "no"] for row in found["crossovers"]])
        + f"\n\n192K is the crossover at {rates['high'] / 1e9:.1f} GB/s with fast compute, "
          f"{rates['middle'] / 1e9:.1f} in the middle, {rates['low'] / 1e9:.1f} with slow compute.",
        "million": table(
            ("", "paper", "simulated"),
            [["MFU", f"{PUBLISHED_MFU:.2%}", f"{mfu['middle']:.1%}, from {mfu['low']:.1%} to {mfu['high']:.1%}"],
             ["published value in the interval", "", where],
             ["alpha", "not given", f"{headline['alpha']:.1%}, bound by host memory"],
             ["step", "not given", " / ".join(f"{headline['step_s'][end]:.0f} s" for end in ("high", "middle", "low"))],
             ["saved tensors on one GPU, peak", "", f"{headline['peak_device_gib']:.1f} GiB"],
             ["saved tensors on the host, peak", "", f"{headline['peak_host_gib_all_gpus']:.0f} GiB"],
             ["where the time goes (middle)", "", spread]]),
        "alone": table(
            ("input alone at its ends", "MFU"),
            [[name, f"{ends['low']:.1%} to {ends['high']:.1%}"] for name, ends in headline["alone"].items()]),
        "winners": winners_table(found["winners"]),
        "winners at the slow link": winners_table(found["winners_slow_link"]),
    }  # fmt: skip


def winners_table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["mfu"])
    cells = [[f"{row['seq'] >> 10}K", f"{row['alpha']:.2f}",
              *("does not fit" if row["mfu"][name] is None else f"{row['mfu'][name]:.1%}" for name in names),
              " = ".join(row["fastest"])] for row in rows]  # fmt: skip
    return table(("sequence", "alpha", *names, "fastest"), cells)


def filled(document: str, tables: dict[str, str]) -> str:
    """The document with what is between each pair of marks replaced."""
    for name, text in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        document, count = pattern.subn(lambda _, text=text, b=begin, e=end: f"{b}\n{text}\n{e}", document)
        if count != 1:
            raise ValueError(f"{name}: wanted one pair of marks in the document, found {count}")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT}")
    parser.add_argument("--plan", action="store_true", help="memsys's planner in the last table, too")
    arguments = parser.parse_args()
    found = study(arguments.plan)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    tables = markdown(found)
    if arguments.write:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), tables))
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main()
