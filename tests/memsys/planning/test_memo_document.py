"""docs/memo.md says what benchmarks/simulate_memo.py prints, and what its prose draws from the tables is so."""

from __future__ import annotations

import json
import sys

import pytest
import simulate_memo


@pytest.fixture(scope="module")
def found() -> dict:
    return simulate_memo.study()


def test_the_document_is_what_the_script_prints(found: dict) -> None:
    text = simulate_memo.DOCUMENT.read_text()
    renewed = simulate_memo.filled(text, simulate_memo.markdown(found))
    assert text == renewed, "run benchmarks/simulate_memo.py --write"


def test_a_document_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="one pair of marks"):
        simulate_memo.filled("no marks", {"inputs": "|"})


def test_the_published_mfu_lies_inside(found: dict) -> None:
    headline = found["million"]
    assert headline["mfu"]["low"] < 0.5230 < headline["mfu"]["high"]
    assert headline["is_inside"]
    assert headline["fits"]
    assert headline["alpha"] == pytest.approx((2048 / 30 - 16) / 112, abs=1e-4)  # by the host's memory
    assert headline["stall_s"] == 0
    assert headline["mfu"]["high"] - headline["mfu"]["low"] == pytest.approx(0.13, abs=0.005)
    assert headline["parts_s"]["attention"] / headline["step_s"]["middle"] == pytest.approx(0.95, abs=0.01)
    assert headline["parts_s"]["computing again"] / headline["step_s"]["middle"] < 0.01


def test_192k_is_the_crossover_of_links_between_one_gpu_and_a_shared_one(found: dict) -> None:
    assert [row["holds_192k"] for row in found["crossovers"]] == [False, True, True, False, False]
    assert all(11e9 / 1.2 < rate < 25e9 for rate in found["crossover_rates"].values())


@pytest.mark.parametrize("table", ["winners", "winners_slow_link"])
def test_token_wise_is_never_beaten(found: dict, table: str) -> None:
    for row in found[table]:
        assert "token-wise" in row["fastest"], row
        assert row["mfu"]["token-wise"] > row["mfu"]["full recompute"], row
        assert ("full swap" in row["fastest"]) is (row["alpha"] == 1.0), row
    assert found[table][-1]["mfu"]["full swap"] is None


def test_on_a_slow_link_short_lengths_are_computed_again_sooner_than_swapped(found: dict) -> None:
    first = found["winners_slow_link"][0]["mfu"]
    assert first["full swap"] < first["full recompute"]


def test_no_input_is_the_papers() -> None:
    assert all("MEMO" not in row["source"] and "2407.12117" not in row["source"] for row in simulate_memo.inputs())


def test_the_script_prints_json(monkeypatch, capsys, found: dict) -> None:
    monkeypatch.setattr(simulate_memo, "study", lambda with_plan: found)
    monkeypatch.setattr(sys, "argv", ["simulate_memo.py", "--json"])
    simulate_memo.main()
    assert json.loads(capsys.readouterr().out)["million"]["published_mfu"] == 0.5230
