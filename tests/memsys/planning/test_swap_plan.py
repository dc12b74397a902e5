"""Plans come back from their files as they went, and say what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_files import rewrite
from step_traces import decoder_trace

from memsys.errors import InputError
from memsys.planning.solve import solve
from memsys.planning.swap_plan import Budgets, Choice, Hardware, Link, SwapPlan


def solved(share: float = 0.4) -> SwapPlan:
    trace = decoder_trace(row_count=64, remake_share=0.05)
    hardware = Hardware(Link(2e9, 1e9, 2.5e9, 3.0, 0.1), Link(4e9, 4e9))
    return solve(trace, hardware, Budgets(int(share * trace.saved_bytes), trace.saved_bytes))


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    plan = solved()
    assert Choice.ROWS in plan.choices and plan.alphas and plan.signature
    plan.save(tmp_path / "plan.json")
    assert SwapPlan.load(tmp_path / "plan.json") == plan
    bare = SwapPlan((Choice.KEEP, Choice.FILE))
    bare.save(tmp_path / "bare.json")
    assert SwapPlan.load(tmp_path / "bare.json") == bare


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"choices": ["keep", "nowhere"]}, "nowhere"),
        ({"budgets": {"device_bytes": 1, "gpu_bytes": 2}}, "gpu_bytes"),
        ({"choices": ["keep"], "signature": [1, 2]}, "1 choices for 2 spans"),
        ({"row_tier": "keep"}, "rows go to"),
        ({"alphas": [1.0]}, "alphas: wanted"),
        ({"alphas": {"0": 1.5}}, "from 0 to 1"),
        ({"solve_us": "1"}, "solve_us: wanted float"),
    ],
)
def test_a_malformed_plan_is_refused(tmp_path: Path, change: dict[str, object], found: str) -> None:
    path = tmp_path / "plan.json"
    solved().save(path)
    rewrite(path, change)
    with pytest.raises(InputError, match=found):
        SwapPlan.load(path)


def test_what_is_no_json_or_lacks_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("not a plan", "[]", '{"format": "memsys-swap-plan-2"}', '{"format": "memsys-trace-2"}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"plan\.json"):
            SwapPlan.load(path)


def test_a_plan_says_what_goes_where_and_what_it_costs() -> None:
    plan = solved()
    text = str(plan)
    for words in ("64.0 MiB", "divided by rows", "predicted step", "waiting", "computing again", "at most",
                  "device", "host"):  # fmt: skip
        assert words in text, text
    assert "nothing moves" not in text
    assert "nothing moves: all 67108864 bytes fit" in str(solved(1.0))
