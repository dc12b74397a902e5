"""`memsys trace`: the file loads, its lanes don't overlap, and it has every byte that the stats counted."""

from __future__ import annotations

import itertools
import json

import pytest
from built import needs_memsys

needs_memsys()

from memsys.cli import main  # noqa: E402

TINY = ["--layers", "2", "--width", "128", "--seq", "256", "--device", "cpu", "--device-budget", "4MiB"]


@pytest.fixture
def text(tmp_path) -> list[str]:
    (tmp_path / "text").write_bytes(b"for i in range(10):\n    print(i)\n" * 400)
    return ["--data", str(tmp_path / "text"), "--spill-dir", str(tmp_path)]


@pytest.mark.parametrize("policy", ["all", "auto"])
def test_a_trace_has_every_byte_and_no_overlap(policy, text, tmp_path, capsys):
    path = tmp_path / "trace.json"
    argv = ["trace", *TINY, *text, "--policy", policy, "--steps", "2", "--output", str(path), "--json"]
    assert main.main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    slices = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    for direction in ("out", "in"):
        moved = [event["args"] for event in slices if event["cat"].endswith(f" {direction}")]
        total = sum(facts["bytes"] for facts in moved if facts["touches_device"])
        assert total == result["stats"][f"{direction}_bytes"] > 0
    for _, lane in itertools.groupby(sorted(slices, key=lambda event: event["cat"]), key=lambda event: event["cat"]):
        ranges = sorted((event["ts"], event["ts"] + event["dur"]) for event in lane)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))
    assert [event["name"] for event in slices if event["cat"] == "compute"] == ["forward", "backward"] * 2
    assert result["peak_bytes"]["device"] == result["stats"]["peak_device_bytes"] <= 4 << 20
    assert result["stall_us"] == result["stats"]["stall_us"]
    assert result["dropped_count"] == 0
    assert len(result["loss"]) == 2


def test_the_summary_is_short_and_the_picture_is_there(text, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    files = ["--output", str(tmp_path / "trace.json"), "--png", str(tmp_path / "trace.png")]
    assert main.main(["trace", *TINY, *text, "--policy", "all", "--steps", "1", *files]) == 0
    output = capsys.readouterr().out
    assert "file out" in output and "peak: device" in output
    assert "GB/s" in output
    assert (tmp_path / "trace.png").stat().st_size > 1000


def test_an_output_that_cannot_be_written_is_told_before_the_steps(tmp_path, capsys):
    assert main.main(["trace", *TINY, "--output", str(tmp_path / "none" / "trace.json")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
