"""A schedule obeys its link, its budgets and its clock, whatever the plan."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_traces import decoder_trace, hardwares, plans, tight_budgets, traces

from memsys.errors import InputError
from memsys.planning.fixed import KINDS, fixed_plan
from memsys.planning.schedule import Schedule, schedule
from memsys.planning.swap_plan import Budgets, Choice, Hardware, Link, SwapPlan
from memsys.planning.trace import SpanRecord, StepTrace
from memsys.planning.work import moved_row_count

FREE = Budgets()


@st.composite
def cases(draw: st.DrawFn) -> tuple[StepTrace, SwapPlan, Hardware, Budgets]:
    trace, hardware = draw(traces()), draw(hardwares())
    budgets = draw(st.sampled_from([FREE, tight_budgets(trace, 0.9, 0.5), tight_budgets(trace, 0.5)]))
    return trace, draw(plans(trace, hardware)), hardware, budgets


def moved_bytes(trace: StepTrace, plan: SwapPlan) -> int:
    total = 0
    for span, choice in zip(trace.spans, plan.choices, strict=True):
        if choice in (Choice.HOST, Choice.FILE):
            total += span.bytes
        elif choice is Choice.ROWS:
            row_count = trace.segments[span.segment].row_count
            total += moved_row_count(plan.alphas[span.segment], row_count) * span.row_bytes
    return total


@given(cases())
def test_the_step_is_compute_and_what_delays_it(case) -> None:
    trace, plan, hardware, budgets = case
    found = schedule(trace, plan, hardware, budgets).predicted
    least_us = trace.forward_us + trace.backward_us + found.remade_us + found.stall_us
    assert found.step_us >= least_us - 1e-6
    if all(link is None or not link.slowdown for link in (hardware.host, hardware.file)):
        assert found.step_us == pytest.approx(least_us)
    assert found.step_us == pytest.approx(found.forward_us + found.backward_us)


@given(cases())
def test_bytes_are_conserved(case) -> None:
    trace, plan, hardware, budgets = case
    found = schedule(trace, plan, hardware, budgets)
    assert found.predicted.out_bytes == moved_bytes(trace, plan)
    by_lane = Counter()
    for piece in found.slices:
        by_lane[piece.lane] += piece.bytes
    assert found.predicted.out_bytes == by_lane["host out"] + by_lane["file out"]
    assert found.predicted.in_bytes == by_lane["host in"] + by_lane["file in"]
    for levels in found.levels.values():
        assert levels[-1][1] == 0 and min(level for _, level in levels) == 0


@given(cases())
def test_levels_stay_within_budgets_or_the_schedule_says_which_it_breaks(case) -> None:
    trace, plan, hardware, budgets = case
    found = schedule(trace, plan, hardware, budgets)
    limits = {"device": budgets.device_bytes, "host": budgets.host_bytes, "file": budgets.file_bytes}
    peaks = {tier: max(level for _, level in levels) for tier, levels in found.levels.items()}
    broken = {tier for tier, limit in limits.items() if limit is not None and peaks[tier] > limit}
    assert broken == {overrun.tier for overrun in found.overruns}
    assert all(overrun.wanted_bytes == peaks[overrun.tier] for overrun in found.overruns)
    predicted = found.predicted
    assert peaks == {"device": predicted.peak_device_bytes, "host": predicted.peak_host_bytes,
                     "file": predicted.peak_file_bytes}  # fmt: skip


@given(cases())
def test_a_lane_carries_one_transfer_at_a_time_no_faster_than_its_link(case) -> None:
    trace, plan, hardware, budgets = case
    found = schedule(trace, plan, hardware, budgets)
    links = {"host": hardware.host, "file": hardware.file}
    lanes: dict[str, list] = {}
    for piece in found.slices:
        lanes.setdefault(piece.lane, []).append(piece)
    for name, pieces in lanes.items():
        for before, after in itertools.pairwise(pieces):
            assert after.begin_us >= before.end_us - 1e-6
        if name in ("stall", "remake"):
            continue
        tier, direction = name.split()
        rate = links[tier].out_rate if direction == "out" else links[tier].in_rate
        for piece in pieces:
            assert piece.end_us - piece.begin_us >= links[tier].latency_us + piece.bytes * 1e6 / rate - 1e-6
            if direction == "out":
                assert piece.begin_us >= trace.spans[piece.span].saved_us - 1e-6


@given(traces(), hardwares(with_host=False), st.data())
def test_a_faster_way_in_is_never_slower(trace, hardware, data) -> None:
    """Where all has left before backward begins; else a source that is read before it has left saves its way in."""
    link = replace(hardware.file, out_rate=1e15, both_rate=None, latency_us=0.0, slowdown=0.0)
    slow, fast = replace(hardware, file=link), replace(hardware, file=replace(link, in_rate=2 * link.in_rate))
    plan = data.draw(plans(trace, slow))
    steps = [schedule(trace, plan, hardware, FREE).predicted.step_us for hardware in (slow, fast)]
    assert steps[1] <= steps[0] + 1e-6


@given(traces(), hardwares(with_host=False), st.data())
def test_a_faster_way_out_never_slows_forward(trace, hardware, data) -> None:
    fast = replace(hardware, file=replace(hardware.file, out_rate=2 * hardware.file.out_rate, both_rate=None))
    slow = replace(hardware, file=replace(hardware.file, both_rate=None))
    plan = data.draw(plans(trace, slow))
    times = [schedule(trace, plan, hardware, FREE).predicted.forward_us for hardware in (slow, fast)]
    assert times[1] <= times[0] + 1e-6


def span(index: int, bytes_: int, saved_us: float, first_us: float, last_us: float, **more) -> SpanRecord:
    return SpanRecord(index, bytes_, "float32", (bytes_ // 4,), "op", -1, saved_us, first_us, last_us, **more)


def forward_peak(found: Schedule) -> int:
    return max(level for us, level in found.levels["device"] if us < found.predicted.forward_us)


def test_the_window_stalls_compute_until_sources_have_left() -> None:
    """Two spans of 100 bytes at 1 byte a microsecond; the second is saved 10 us after the first, which takes 100."""
    trace = StepTrace("cpu", 300.0, 300.0, (span(0, 100, 0, 500, 510), span(1, 100, 10, 400, 410)))
    plan = SwapPlan((Choice.FILE, Choice.FILE))
    narrow = schedule(trace, plan, Hardware(Link(1e6, 1e9), None, 100), FREE)
    assert narrow.predicted.forward_us == pytest.approx(300.0 + 90.0)
    assert forward_peak(narrow) == 100
    wide = schedule(trace, plan, Hardware(Link(1e6, 1e9), None, 200), FREE)
    assert wide.predicted.forward_us == pytest.approx(300.0)
    assert forward_peak(wide) == 200


def test_backward_prefetches_what_the_window_holds_and_fetches_the_first_on_demand() -> None:
    """In at 1 byte a microsecond: the first read waits 50 us, the second was on its way for the 100 us of compute."""
    trace = StepTrace("cpu", 100.0, 300.0, (span(0, 50, 0, 200, 210), span(1, 50, 0, 100, 110)))
    found = schedule(trace, SwapPlan((Choice.FILE, Choice.FILE)), Hardware(Link(1e9, 1e6), None, 100), FREE)
    assert found.predicted.stall_us == pytest.approx(50.0)
    assert found.predicted.step_us == pytest.approx(450.0)
    assert [(piece.lane, piece.span) for piece in found.slices if piece.lane == "file in"] == [
        ("file in", 1), ("file in", 0)]  # fmt: skip


def test_a_source_that_is_read_before_it_has_left_needs_no_way_back() -> None:
    trace = StepTrace("cpu", 10.0, 100.0, (span(0, 1000, 5, 20, 30),))
    found = schedule(trace, SwapPlan((Choice.FILE,)), Hardware(Link(1e6, 1e6)), FREE)
    assert found.predicted.in_bytes == 0 and found.predicted.stall_us == 0
    assert found.predicted.step_us == pytest.approx(110.0)


def test_both_directions_share_their_link() -> None:
    """1000 bytes go out from 100 on; 100 come in from 600 on: at half the rate each, as both together get 1/us."""
    spans = (span(0, 100, 0, 600, 610), span(1, 1000, 100, 700, 710))
    trace = StepTrace("cpu", 590.0, 2000.0, spans)
    plan = SwapPlan((Choice.FILE, Choice.FILE))
    apart = schedule(trace, plan, Hardware(Link(1e6, 1e6), None, 2000), FREE).predicted
    shared = schedule(trace, plan, Hardware(Link(1e6, 1e6, both_rate=1e6), None, 2000), FREE).predicted
    assert apart.stall_us == pytest.approx(100.0)
    assert shared.stall_us == pytest.approx(200.0)


def test_compute_is_held_up_while_a_lane_is_busy() -> None:
    trace = StepTrace("cpu", 200.0, 200.0, (span(0, 100, 0, 300, 310),))
    link = Link(1e6, 1e9, slowdown=0.25)
    found = schedule(trace, SwapPlan((Choice.FILE,)), Hardware(link), FREE).predicted
    assert found.forward_us == pytest.approx(200.0 + 0.25 * 100)


def test_what_is_prefetched_gives_way_to_what_is_wanted() -> None:
    """Span 0 (80 bytes) is wanted while span 1 (30) was brought back ahead of it: 100 bytes hold one of them. The order
    of use is 2, 1 by prediction of the trace; what does not fit ahead is fetched when it is read."""
    spans = (span(0, 80, 0, 300, 310), span(1, 30, 0, 400, 410), span(2, 20, 0, 150, 160))
    trace = StepTrace("cpu", 100.0, 500.0, spans)
    found = schedule(trace, SwapPlan((Choice.FILE,) * 3), Hardware(Link(1e8, 1e8), None, 1000), Budgets(100))
    assert found.fits
    assert found.predicted.in_bytes == 130


def test_a_remade_span_wants_its_inputs_earlier() -> None:
    """Span 1 is made from span 0, which is therefore read at 110, not at 180."""
    spans = (span(0, 50, 0, 180, 190), span(1, 50, 10, 110, 120, remake_us=7.0, remake_inputs=(0,)))
    trace = StepTrace("cpu", 100.0, 100.0, spans)
    found = schedule(trace, SwapPlan((Choice.FILE, Choice.RECOMPUTE)), Hardware(Link(1e6, 1e6)), FREE)
    assert found.predicted.remade_us == 7.0 and found.predicted.out_bytes == 50
    arrived = next(piece for piece in found.slices if piece.lane == "file in")
    remade = next(piece for piece in found.slices if piece.lane == "remake")
    assert arrived.begin_us == pytest.approx(110.0) and remade.begin_us == pytest.approx(arrived.end_us)
    assert found.predicted.peak_device_bytes == 100


@pytest.mark.parametrize("alpha", [i / 10 for i in range(11)])
def test_rows_move_their_share_and_their_segment_runs_the_rest(alpha: float) -> None:
    trace = decoder_trace(layer_count=2, row_count=10, unit_bytes=1000)
    choices = [Choice.ROWS if span.row_bytes else Choice.HOST for span in trace.spans]
    plan = SwapPlan(tuple(choices), {0: alpha, 1: alpha}, Choice.HOST)
    found = schedule(trace, plan, Hardware(None, Link(1e10, 1e10)), FREE).predicted
    rows = moved_row_count(alpha, 10)
    assert found.out_bytes == 2 * (2000 + rows * 1400)
    assert found.remade_us == pytest.approx(2 * (1 - rows / 10) * trace.segments[0].remake_us)


def test_a_checkpoint_keeps_inputs_and_runs_each_layer_again() -> None:
    trace = decoder_trace(layer_count=3, unit_bytes=1000)
    found = schedule(trace, fixed_plan(trace, "checkpoint"), Hardware(None), FREE).predicted
    assert found.out_bytes == 0
    assert found.remade_us == pytest.approx(trace.forward_us)
    assert found.peak_device_bytes == 3 * 1000 + 15 * 1000
    assert found.step_us == pytest.approx(2 * trace.forward_us + trace.backward_us)


def test_fixed_plans_move_what_their_names_say() -> None:
    trace = decoder_trace(layer_count=3, unit_bytes=1000)
    hardware = Hardware(Link(1e9, 1e9), Link(1e10, 1e10))
    counts = {kind: Counter(fixed_plan(trace, kind, hardware, Budgets(None, 5000)).choices) for kind in KINDS}
    assert set(counts["keep"]) == {Choice.KEEP}
    assert counts["inputs"] == {Choice.HOST: 5, Choice.FILE: 1, Choice.KEEP: 24}
    assert counts["all"][Choice.KEEP] == 0 and counts["all"][Choice.HOST] == 5
    with pytest.raises(InputError, match="'some'"):
        fixed_plan(trace, "some")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (SwapPlan((Choice.KEEP,)), "1 choices for a trace of 2"),
        (SwapPlan((Choice.HOST, Choice.KEEP)), "no such link"),
        (SwapPlan((Choice.RECOMPUTE, Choice.KEEP)), "RECOMPUTE of span 0"),
        (SwapPlan((Choice.KEEP, Choice.ROWS)), "ROWS of span 1"),
        (SwapPlan((Choice.KEEP, Choice.KEEP), reruns=(5,)), "layer 5"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(plan: SwapPlan, message: str) -> None:
    trace = StepTrace("cpu", 10.0, 10.0, (span(0, 8, 0, 15, 16), span(1, 8, 0, 12, 13)))
    with pytest.raises(InputError, match=message):
        schedule(trace, plan, Hardware(Link(1e6, 1e6)), FREE)


def test_a_trace_that_reads_before_it_saves_is_refused() -> None:
    trace = StepTrace("cpu", 10.0, 10.0, (span(0, 8, 5, 4, 16),))
    with pytest.raises(InputError, match="span 0"):
        schedule(trace, SwapPlan((Choice.KEEP,)), Hardware(None), FREE)


def test_links_and_segments_that_make_no_sense_are_refused() -> None:
    trace = decoder_trace(layer_count=1)
    keep = fixed_plan(trace, "keep")
    for link in (Link(0, 1e9), Link(1e9, 1e9, slowdown=1.0)):
        with pytest.raises(InputError, match="file link"):
            schedule(trace, keep, Hardware(link), FREE)
    with pytest.raises(InputError, match="segment 0 has 0 rows"):
        schedule(replace(trace, segments=(replace(trace.segments[0], row_count=0),)), keep, Hardware(None), FREE)


def test_a_trace_of_nothing_is_compute_alone() -> None:
    trace = StepTrace("cpu", 10.0, 20.0, ())
    assert schedule(trace, SwapPlan(()), Hardware(Link(1e9, 1e9)), Budgets(0)).predicted.step_us == 30.0
