"""A plan's file is what was saved, or is refused; a planner never computes with a value of another type."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from plan_files import rewrite, signed
from step_traces import decoder_trace

from memsys.errors import InputError
from memsys.planning.plan import FORMAT, Plan
from memsys.planning.solve import solve
from memsys.planning.swap_plan import Budgets, Hardware, Link, SwapPlan
from memsys.planning.trace import StepTrace


def saved_plan(path: Path) -> Plan:
    trace, hardware = decoder_trace(), Hardware(Link(2e9, 1e9))
    budgets = Budgets(int(0.6 * trace.saved_bytes))
    plan = Plan(trace, solve(trace, hardware, budgets), budgets, hardware, 1 << 16)
    plan.save(path)
    return plan


def test_a_plan_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = saved_plan(path)
    assert Plan.load(path) == plan and str(Plan.load(path)) == str(plan)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))  # spaces change nothing
    assert Plan.load(path) == plan


def test_a_changed_digit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    saved_plan(path)
    text = path.read_text()
    path.write_text(text.replace('"min_bytes": 65536', '"min_bytes": 65537'))
    with pytest.raises(InputError, match="digest is another"):
        Plan.load(path)
    path.write_text(text.replace('"min_bytes": 65536', '"min_bytes": 65536, "min_bytes": 65536'))
    with pytest.raises(InputError, match="same name twice"):
        Plan.load(path)
    path.write_text(text.replace(FORMAT, "memsys-plan-1"))
    with pytest.raises(InputError, match="'memsys-plan-1'"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"min_bytes": "65536"}, "min_bytes: wanted int"),
        ({"min_bytes": True}, "min_bytes: wanted int"),
        ({"min_bytes": 2**63}, "64 bits"),
        ({"min_bytes": None}, "min_bytes: wanted int"),
        ({"budgets": {}}, "exactly the fields of Budgets"),
        ({"budgets": 3}, "exactly the fields of Budgets"),
        ({"extra": 3}, "extra"),
        ({"hardware": {"file": {"out_rate": float("inf")}}}, "Infinity is no number"),
        ({"hardware": {"file": {"out_rate": 1.0}}}, "hardware: wanted exactly"),
    ],
)
def test_a_field_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], found: str) -> None:
    path = tmp_path / "plan.json"
    saved_plan(path)
    rewrite(path, change)
    with pytest.raises(InputError, match=rf"plan\.json.*{found}"):
        Plan.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", '{"format": NaN}', "1" * 5000, "\udcff", "null"])
def test_no_text_is_too_strange(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, errors="surrogateescape")
    for kind in (Plan, SwapPlan, StepTrace):
        with pytest.raises(InputError, match=r"plan\.json"):
            kind.load(path)
        with pytest.raises(InputError, match="absent"):
            kind.load(tmp_path / "absent.json")


def test_a_trace_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.json", decoder_trace(layer_count=1)
    spans = [({"index": 3}, "number 3"), ({"remake_inputs": (99,)}, "made from"), ({"bytes": -1}, "negative"),
             ({"segment": 9}, "a segment that is not there")]  # fmt: skip
    for span, found in spans:
        replace(trace, spans=(replace(trace.spans[0], **span), *trace.spans[1:])).save(path)
        with pytest.raises(InputError, match=found):
            StepTrace.load(path)
    for segment in ({"row_count": 0}, {"inputs": (99,)}):
        replace(trace, segments=(replace(trace.segments[0], **segment),)).save(path)
        with pytest.raises(InputError, match="segment 0 has"):
            StepTrace.load(path)
    replace(trace, forward_us=-1.0).save(path)
    with pytest.raises(InputError, match="a step has a negative"):
        StepTrace.load(path)


def test_a_signed_file_is_as_good_as_a_saved_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = saved_plan(path)
    path.write_text(signed(FORMAT, json.loads(path.read_text())["body"]))
    assert Plan.load(path) == plan
