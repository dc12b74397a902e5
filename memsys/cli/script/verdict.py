"""What the runs of a script say together: equal, different, or that nothing can be said, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from memsys.budget import format_bytes
from memsys.cli.script.compare import Comparison, Names, compare, first_byte
from memsys.cli.script.runs import Ended, Runs, Script

EQUAL, DIFFERENT, FAILED_WITH_MEMSYS = "equal", "different", "failed_with_memsys"
SCRIPT_FAILED, NO_STEP, NOTHING_MOVED, NOT_REPEATABLE = "script_failed", "no_step", "nothing_moved", "not_repeatable"
OPTIONS_IGNORED = "options_ignored"
# 0: equal; 1: memsys changed something; 2: nothing could be compared.
STATUSES = {EQUAL: 0, DIFFERENT: 1, FAILED_WITH_MEMSYS: 1}


@dataclass
class Verdict:
    """`outcome`: one of the words above; `text`: what to print; `mode`: of the second run, see modes.py."""

    outcome: str
    text: str
    mode: str | None = None
    compared: Comparison | None = None
    moved: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return STATUSES.get(self.outcome, 2)

    def as_dict(self) -> dict[str, Any]:
        facts = asdict(self)
        return {"equal": self.outcome == EQUAL, "report": facts.pop("text"), **facts}


def verify_script(script: Script, given: list[str]) -> Verdict:
    """Runs the script plain and with memsys, and where they differ plain once more.

    given: options of the command line that say how to offload, and would do nothing to a script that offloads itself.
    """
    with Runs(script) as runs:
        plain = runs.run("plain")
        if not plain.is_good:
            return Verdict(SCRIPT_FAILED, f"the script fails without memsys, {_end_of(plain)}")
        names = Names(plain.record, plain.end["models"])
        if not names.all():
            return Verdict(NO_STEP, "the script made no optimizer step (torch.optim.Optimizer.step) in this process: "
                                    "there is no gradient to compare")  # fmt: skip
        mode = "own" if plain.end["asked_count"] else "moved"
        if mode == "own" and given:
            return Verdict(OPTIONS_IGNORED, f"the script calls memsys itself, so that {', '.join(given)} would do "
                                            "nothing; leave that out, or the script's own calls", mode)  # fmt: skip
        moved = runs.run(mode, expected=plain.record)
        if not moved.is_good:
            return Verdict(FAILED_WITH_MEMSYS, f"the script fails with memsys alone, {_end_of(moved)}", mode)
        found = compare(plain.record, moved.record, names, Names(moved.record, moved.end["models"]))
        facts = {key: moved.end[key] for key in ("packed_count", "out_bytes", "remade_bytes", "streamed_count")}
        if found.difference is not None:
            return _judge_difference(runs, plain, moved, found, mode, facts)
        return _judge_equal(found, mode, facts)


def _judge_equal(found: Comparison, mode: str, facts: dict[str, int]) -> Verdict:
    if not facts["packed_count"] and not facts["streamed_count"]:
        text = ("the gradients are equal, but memsys moved nothing: no model was called that has something to train "
                "and saves tensors; is the model compiled whole, or run in other processes?")  # fmt: skip
        return Verdict(NOTHING_MOVED, text, mode, found, facts)
    streamed = f", {facts['streamed_count']} models streamed" if facts["streamed_count"] else ""
    text = (f"{found.step_count} steps, {found.parameter_count} parameters, {format_bytes(found.gradient_bytes)} of "
            f"gradients bit for bit equal with and without memsys ({facts['packed_count']} tensors, "
            f"{format_bytes(facts['out_bytes'])} moved{streamed})")  # fmt: skip
    return Verdict(EQUAL, text, mode, found, facts)


def _judge_difference(
    runs: Runs, plain: Ended, moved: Ended, found: Comparison, mode: str, facts: dict[str, int]
) -> Verdict:
    """A script that differs from itself says nothing about memsys: so it is run plain once more."""
    difference = found.difference
    again = runs.run("plain", keep=difference.place)
    if not again.is_good:
        return Verdict(NOT_REPEATABLE, f"the script fails when it is run plain once more, {_end_of(again)}", mode)
    names, names_again = Names(plain.record, plain.end["models"]), Names(again.record, again.end["models"])
    itself = compare(plain.record, again.record, names, names_again).difference
    if itself is not None and itself.step <= difference.step:
        text = f"the script differs from itself without memsys ({itself.text}); fix its seeds, or what it reads, first"
        return Verdict(NOT_REPEATABLE, text, mode, found, facts)
    difference.byte = first_byte(again.kept, moved.kept) if difference.place else None
    text = f"DIFFERENT with memsys, from {difference.text}"
    if difference.byte is not None:
        byte = difference.byte
        text += (f", first at byte {byte['offset']} of {byte['first_bytes']} ({byte['differing_count']} differ): "
                 f"{byte['first']} without, {byte['second']} with memsys")  # fmt: skip
    text += f"; {found.step_count} whole steps before were equal"
    return Verdict(DIFFERENT, text, mode, found, facts)


def _end_of(run: Ended) -> str:
    how = f"with status {run.status}" if run.status else "before its end (os._exit?)"
    return f"{how}:\n{run.output.rstrip()}"
