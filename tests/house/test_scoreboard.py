"""The README's scoreboard is that of the records, and says so where a line was not shown or not met."""

import json

import pytest
import scoreboard


def record(line: str, name: str = "a", is_met: bool = True, **facts) -> dict:
    return {"line": line, "name": name, "measure": "what", "figure": "3 of 3 | 4", "target": "3", "is_met": is_met,
            "seconds": 1.5, "facts": facts, "commit": "abc", "date": "2026-01-02"}  # fmt: skip


def test_every_line_has_a_row_in_its_order() -> None:
    rows = scoreboard.board([record("R10"), record("R2", "b"), record("R2", "a", is_met=False)])
    assert [row["line"] for row in rows] == ["R1", "R2", "R2", *(f"R{number}" for number in range(3, 13))]
    shown = [scoreboard.cells(row) for row in rows]
    assert shown[0][2] == "not shown" and shown[0][4] == "no"
    assert [shown[1][4], shown[2][4]] == ["yes", "no"]
    assert "NOT SHOWN" in scoreboard.as_text(rows) and "NOT MET" in scoreboard.as_text(rows)


def test_a_row_says_when_how_long_and_with_which_seed() -> None:
    (row,) = (row for row in scoreboard.board([record("R9", seed=7)]) if row["line"] == "R9")
    assert scoreboard.cells(row)[-1] == "2026-01-02, 2 s, abc, seed 7"
    assert r"3 of 3 \| 4" in scoreboard.as_markdown([row])


def test_records_are_read_in_the_order_of_their_lines(tmp_path) -> None:
    for line in ("R10", "R2", "R1"):
        (tmp_path / f"{line}-a.json").write_text(json.dumps(record(line)))
    assert [found["line"] for found in scoreboard.read_records(tmp_path)] == ["R1", "R2", "R10"]
    (tmp_path / "R13-a.json").write_text(json.dumps(record("R13")))
    with pytest.raises(ValueError, match="R13"):
        scoreboard.read_records(tmp_path)


def test_only_what_is_between_the_marks_changes() -> None:
    text = f"a\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\nb"
    assert scoreboard.with_table(text, "new") == f"a\n{scoreboard.BEGIN}\nnew\n{scoreboard.END}\nb"
    with pytest.raises(ValueError, match="no lines"):
        scoreboard.with_table("a", "new")


def test_a_figure_that_was_changed_by_hand_is_found(tmp_path, monkeypatch) -> None:
    readme, board = tmp_path / "README.md", tmp_path / "scoreboard.json"
    for name, path in (("README", readme), ("BOARD", board), ("RECORDS", tmp_path)):
        monkeypatch.setattr(scoreboard, name, path)
    (tmp_path / "R2-a.json").write_text(json.dumps(record("R2")))
    readme.write_text(f"{scoreboard.BEGIN}\n{scoreboard.END}\n")
    assert len(scoreboard.differences()) == 2
    assert scoreboard.main([]) == 0 and scoreboard.differences() == []
    readme.write_text(readme.read_text().replace("3 of 3", "4 of 4"))
    assert scoreboard.main(["--check"]) == 1


def test_the_readme_says_what_the_records_say() -> None:
    assert scoreboard.differences() == []
