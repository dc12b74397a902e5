"""Two records of a script side by side: how much was equal, or the first step, parameter and byte that was not."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memsys.cli.script.gradients import Place, read_kind, read_steps

_SHOWN_BYTES = 16


@dataclass
class Difference:
    """Where two runs part. `what`: "gradient", "parameters" or "step_count"; `place` for a gradient."""

    what: str
    text: str
    step: int
    place: Place | None = None
    parameter: str | None = None
    byte: dict[str, Any] | None = None


@dataclass
class Comparison:
    """Steps, parameters and bytes of gradients that were compared up to the first difference."""

    step_count: int = 0
    parameter_count: int = 0
    gradient_bytes: int = 0
    difference: Difference | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Names:
    """The parameters of a record by their numbers."""

    def __init__(self, record: Path, classes: list[str]) -> None:
        self._rows = {row["number"]: row for row in read_kind(record, "parameter")}
        self._classes = classes

    def name(self, number: int) -> str:
        """As the model calls it; where a script trains several models, with the model's class before it."""
        row = self._rows[number]
        if row["model"] is None or len({other["model"] for other in self._rows.values()}) == 1:
            return row["name"]
        own = self._classes[row["model"]]
        same = [model for model, name in enumerate(self._classes) if name == own]
        count = f" {same.index(row['model']) + 1}" if len(same) > 1 else ""
        return f"{own}{count}: {row['name']}"

    def bytes_of(self, number: int) -> int:
        return self._rows[number]["bytes"]

    def all(self) -> list[tuple]:
        return [(row["name"], tuple(row["shape"]), row["dtype"]) for row in self._rows.values()]


def compare(first: Path, second: Path, first_names: Names, second_names: Names) -> Comparison:
    """The two records, step by step, up to the first difference."""
    found, seen = Comparison(), set()
    for one, other in itertools.zip_longest(read_steps(first), read_steps(second)):
        if one is None or other is None:
            counts = [sum(1 for _ in read_steps(path)) for path in (first, second)]
            found.difference = Difference("step_count", f"{counts[0]} optimizer steps against {counts[1]}",
                                          found.step_count)  # fmt: skip
            return found
        found.difference = _parameters_differ(one, other, first_names, second_names)
        if found.difference is not None:
            return found
        for position, (left, right) in enumerate(zip(one["gradients"], other["gradients"], strict=True)):
            name = first_names.name(left[0])
            if left[1] != right[1]:
                missing = [title for title, row in (("first", left), ("second", right)) if row[1] is None]
                text = f"step {one['number']}, {name}: " + (
                    f"no gradient in the {missing[0]} run" if missing else "the gradients differ"
                )
                place = Place(one["number"], position)
                found.difference = Difference("gradient", text, one["number"], place, name)
                return found
            if left[1] is not None:
                seen.add(left[0])
                found.gradient_bytes += first_names.bytes_of(left[0])
        found.step_count += 1
        found.parameter_count = len(seen)
    return found


def _parameters_differ(one: dict, other: dict, names: Names, other_names: Names) -> Difference | None:
    left = [names.name(number) for number, _ in one["gradients"]]
    right = [other_names.name(number) for number, _ in other["gradients"]]
    if left == right and one["name"] == other["name"]:
        return None
    only = [name for name in left if name not in right] + [name for name in right if name not in left]
    shown = f": {', '.join(only[:5])} in one run alone" if only else ""
    text = (f"step {one['number']}: {one['name']} of {len(left)} parameters against {other['name']} of "
            f"{len(right)}{shown}")  # fmt: skip
    return Difference("parameters", text, one["number"])


def first_byte(first: Path, second: Path) -> dict[str, Any] | None:
    """The first byte in which two kept gradients differ: its offset, how many differ, and what follows in each."""
    if not first.exists() or not second.exists():
        return None
    left, right = first.read_bytes(), second.read_bytes()
    differing = [offset for offset, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
    if not differing and len(left) == len(right):
        return None
    offset = differing[0] if differing else min(len(left), len(right))
    return {"offset": offset, "differing_count": len(differing), "first_bytes": len(left), "second_bytes": len(right),
            "first": left[offset : offset + _SHOWN_BYTES].hex(" "),
            "second": right[offset : offset + _SHOWN_BYTES].hex(" ")}  # fmt: skip
