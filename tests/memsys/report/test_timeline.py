"""Timelines as numbers, as a trace file and as a picture; the rule by which transfers share a lane's time."""

from __future__ import annotations

import builtins
import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsys.errors import UnsupportedError
from memsys.report.perfetto import MEASURED, PLANNED
from memsys.report.timeline import Slice, Timeline, in_service

PLAN = SimpleNamespace(
    slices=[SimpleNamespace(lane="compute", begin_us=0.0, end_us=50.0, bytes=0, span=-1),
            SimpleNamespace(lane="file out", begin_us=10.0, end_us=30.0, bytes=8, span=0)],
    levels={"device": [(0.0, 0), (10.0, 8)]},
)  # fmt: skip


def small_timeline(**changes) -> Timeline:
    slices = (
        Slice("compute", 5.0, 60.0, name="forward"),
        Slice("compute", 60.0, 100.0, name="backward"),
        Slice("stall", 50.0, 70.0, name="waits"),
        Slice("host out", 10.0, 20.0, 8, span=0, issued_us=7.0),
        Slice("file out", 20.0, 40.0, 8, span=0, touches_device=False),
        Slice("file in", 70.0, 80.0, 8, span=0),
        Slice("file in", 80.0, 85.0, 4, span=1, is_failed=True),
    )
    levels = {"device": ((0.0, 0), (10.0, 8), (20.0, 0)), "host": ((0.0, 0),), "file": ((0.0, 0), (20.0, 8))}
    values = {"slices": slices, "levels": levels, "limits": {"device": 16, "host": None}, "duration_us": 100.0}
    return Timeline(**(values | changes))


def union_us(ranges: list[tuple[float, float]]) -> float:
    """Time covered by at least one range, counted point by point."""
    return sum(any(begin <= point < end for begin, end in ranges) for point in range(64))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12))
def test_transfers_share_a_lane_without_overlap_and_without_gaps(pairs):
    ranges = [(float(begin), float(begin + length)) for begin, length in pairs]
    served = in_service(Slice("file out", begin, end, bytes=place) for place, (begin, end) in enumerate(ranges))
    assert sorted(slice_.bytes for slice_ in served) == list(range(len(ranges)))
    for slice_ in served:
        assert slice_.begin_us <= slice_.end_us
        begin, end = ranges[slice_.bytes]
        assert slice_.end_us == end
        assert (slice_.begin_us if slice_.issued_us is None else slice_.issued_us) == begin
    assert all(one.end_us <= other.begin_us for one, other in itertools.pairwise(served))
    assert sum(slice_.end_us - slice_.begin_us for slice_ in served) == union_us(ranges)


def test_the_numbers_of_a_timeline():
    timeline = small_timeline()
    assert (timeline.out_bytes, timeline.in_bytes) == (8, 8)  # one hop of two counts, and no failure
    assert timeline.busy_us("file in") == 15.0
    assert timeline.busy_share("file out") == 0.2
    assert timeline.peak_bytes("device") == 8
    assert timeline.last_step_us == 5.0
    summary = timeline.summary()
    assert summary["stall_us"] == 20.0
    assert summary["peak_bytes"] == {"device": 8, "host": 0, "file": 8}
    assert Timeline().summary()["duration_us"] == 0.0


def slices_of(trace: dict, process: int) -> list[dict]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == process]


def test_a_saved_trace_is_one_that_viewers_read(tmp_path):
    small_timeline(planned=PLAN).save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = {(event["pid"], event["tid"]): event["args"]["name"]
             for event in trace["traceEvents"] if event["name"] == "thread_name"}  # fmt: skip
    measured = slices_of(trace, MEASURED)
    assert {names[MEASURED, event["tid"]] for event in measured} == {"compute", "host out", "file out", "file in"}
    # A wait across the end of forward is shown in two parts, one inside of each slice of compute.
    waits = [(event["ts"], event["dur"]) for event in measured if event["cat"] == "stall"]
    assert waits == [(50.0, 10.0), (60.0, 10.0)]
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C" and event["pid"] == MEASURED]
    assert [event["args"]["bytes"] for event in counters if event["name"] == "device bytes"] == [0, 8, 0]
    # What was planned counts from the begin of the last measured step.
    assert [event["ts"] for event in slices_of(trace, PLANNED)] == [5.0, 15.0]
    assert trace["otherData"]["out_bytes"] == 8


@pytest.mark.parametrize("planned", [None, PLAN], ids=["measured", "planned"])
@pytest.mark.parametrize("timeline", [small_timeline(), Timeline()], ids=["some", "empty"])
def test_a_picture_is_a_png(timeline, planned, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    timeline.planned = planned
    timeline.plot(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_plot_names_the_remedy(tmp_path, monkeypatch):
    real = builtins.__import__

    def fail(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UnsupportedError, match=r"pip install \"memsys\[plot\]\""):
        small_timeline().plot(tmp_path / "trace.png")
