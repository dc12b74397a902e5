"""The scoreboard: what the proofs found, one line for each, from the records that `make scoreboard` leaves.

python benchmarks/scoreboard.py            # prints it, writes scoreboard.json and the README's table
python benchmarks/scoreboard.py --check    # status 1 where the README or the JSON says other than the records
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "results" / "proof"
BOARD = ROOT / "benchmarks" / "results" / "scoreboard.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"
COLUMNS = ("", "what", "figure", "target", "met", "run")
NOT_SHOWN = "not shown"
# What is asked for, in the words of a line that has no record yet.
LINES = {
    "R1": ("gradients of Hugging Face architectures, bit for bit", "at least 130, all equal"),
    "R2": ("lives of an autograd graph", "15/15"),
    "R3": ("every operation made to fail, for every k", "right bits or a typed error, no hang"),
    "R4": ("seeded schedules: bugs put in and found, and false alarms", "11/11; 0 in 100000"),
    "R5": ("leaks over 1000 good and 1000 failing steps", "0"),
    "R6": ("SIGKILL at random points", "200, nothing left"),
    "R7": ("fuzzed gathers and headers", "1000000 and 10000000, no crash, no mismatch"),
    "R8": ("sanitizers, and branch coverage of csrc", "no report; at least 90 %"),
    "R9": ("training under random faults", "120 min, 0 wrong bits"),
    "R10": ("peaks against budgets", "0 over; planned peak within 5 %"),
    "R11": ("installs", "under 60 s; Python 3.11 and 3.12, torch 2.11 and 2.13"),
    "R12": ("what memsys costs where it moves nothing", "under 1 %; under 100 ms"),
}


def read_records(folder: Path | None = None) -> list[dict[str, Any]]:
    """The records in the order of their lines; raises ValueError for one of a line that there is not."""
    records = [json.loads(path.read_text()) for path in sorted((folder or RECORDS).glob("R*.json"))]
    unknown = [record["line"] for record in records if record["line"] not in LINES]
    if unknown:
        raise ValueError(f"records of {', '.join(unknown)}, wanted R1 to R12; name the proof's line as it is here")
    order = list(LINES)
    return sorted(records, key=lambda record: (order.index(record["line"]), record["name"]))


def board(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows: those of the records, and of each line that has none that it is not shown."""
    rows = []
    for line, (measure, target) in LINES.items():
        own = [record for record in records if record["line"] == line]
        rows += own or [{"line": line, "measure": measure, "figure": NOT_SHOWN, "target": target, "is_met": False}]
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row as the table shows it."""
    if row["figure"] == NOT_SHOWN:
        return [row["line"], row["measure"], NOT_SHOWN, row["target"], "no", ""]
    facts = row.get("facts", {})
    seed = next((f", seed {facts[key]}" for key in ("seed", "seeds") if isinstance(facts.get(key), (int, str))), "")
    run = f"{row['date']}, {row['seconds']:.0f} s, {row['commit'] or 'no commit'}{seed}"
    return [row["line"], row["measure"], row["figure"], row["target"], "yes" if row["is_met"] else "no", run]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    table = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)


def as_text(rows: list[dict[str, Any]]) -> str:
    """Without a frame, a row of the table a paragraph: figures are long."""
    lines = []
    for line, measure, figure, target, met, run in map(cells, rows):
        verdict = "NOT SHOWN" if figure == NOT_SHOWN else "met" if met == "yes" else "NOT MET"
        lines += [f"{line:4}{verdict:10}{measure}", f"{'':14}{figure} (target: {target})"]
        lines += [f"{'':14}{run}"] if run else []
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks; raises ValueError where they are missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no lines {BEGIN} and {END}; put them where the table belongs")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def differences() -> list[str]:
    """What the README and the JSON say other than the records."""
    rows = board(read_records())
    found = []
    if README.read_text() != with_table(README.read_text(), as_markdown(rows)):
        found.append("README.md: its scoreboard is not that of the records; run `python benchmarks/scoreboard.py`")
    if not BOARD.exists() or json.loads(BOARD.read_text()) != rows:
        found.append(f"{BOARD.name}: is not that of the records; run `python benchmarks/scoreboard.py`")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args(argv).check:
        found = differences()
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    rows = board(read_records())
    print(as_text(rows))
    BOARD.write_text(json.dumps(rows, indent=2) + "\n")
    README.write_text(with_table(README.read_text(), as_markdown(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
