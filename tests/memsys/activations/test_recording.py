"""The record of a step: every byte that moved, lanes that never overlap, levels that end where the budgets do."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from built import needs_memsys

needs_memsys()

from gradients import DROPPED, gradients, offloaded, small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys import _C, _tensor, runtimes  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402
from memsys.report.timeline import LANES, LINKS, Slice  # noqa: E402


def step_when_all_has_left(model) -> list:
    """As step(), but nothing is still there when backward wants it."""
    model.zero_grad()
    loss = model(small_input()).float().square().mean()
    session_of(model).drain()
    loss.backward()
    return [loss.detach(), *gradients(model)]


def assert_sound(timeline) -> None:
    for lane in LANES:
        slices = timeline.lane(lane)
        assert all(one.end_us <= other.begin_us for one, other in itertools.pairwise(slices)), lane
        assert all(0 <= slice_.begin_us <= slice_.end_us <= timeline.duration_us for slice_ in slices), lane
    for changes in timeline.levels.values():
        assert all(bytes_ >= 0 for _, bytes_ in changes)
        assert [at_us for at_us, _ in changes] == sorted(at_us for at_us, _ in changes)


@pytest.mark.parametrize("tier", ["file", "host"])
def test_a_record_has_every_byte(tier, tmp_path):
    place = memsys.FILE if tier == "file" else memsys.HOST
    model = offloaded(small_model(), tmp_path, lambda saved: place)
    wanted = step(model, small_input())
    before = memsys.stats(model)
    with memsys.record_timeline(model) as timeline:
        found = [step_when_all_has_left(model) for _ in range(2)]
    after = memsys.stats(model)
    assert all(torch.equal(one, other) for again in found for one, other in zip(again, wanted, strict=True))
    assert_sound(timeline)
    assert timeline.out_bytes == after.out_bytes - before.out_bytes > 0
    assert timeline.in_bytes == after.in_bytes - before.in_bytes > 0
    assert {slice_.lane for slice_ in timeline.slices if slice_.lane in LINKS} == {f"{tier} out", f"{tier} in"}
    assert [slice_.name for slice_ in timeline.lane("compute")] == ["forward", "backward"] * 2
    assert timeline.busy_us("stall") == pytest.approx(after.stall_us - before.stall_us, abs=100)
    assert 0 < timeline.peak_bytes("device") <= after.peak_device_bytes
    sent = [slice_.span for slice_ in timeline.lane(f"{tier} out")]
    assert sorted(sent) == sorted(2 * list(range(len(sent) // 2)))  # each of the step's spans, once a step
    assert after.timeline() is timeline
    # What comes later is not recorded.
    step(model, small_input())
    assert timeline.out_bytes == after.out_bytes - before.out_bytes


def test_levels_keep_the_budget_and_show_its_peak(tmp_path):
    budget = 1 << 20
    model = offloaded(small_model(), tmp_path, DROPPED, device_budget=budget)
    with memsys.record_timeline(model) as timeline:  # from the very first step: the peak is the record's
        for _ in range(3):
            step(model, small_input())
    assert_sound(timeline)
    stats = memsys.stats(model)
    assert timeline.limits["device"] == budget
    assert timeline.peak_bytes("device") == stats.peak_device_bytes <= budget
    assert timeline.peak_bytes("file") == stats.peak_file_bytes


def test_the_scope_form_is_recorded_too(tmp_path):
    scope = memsys.offload_activations(policy="all", min_bytes=1, spill_dir=str(tmp_path))
    model = small_model()
    with memsys.record_timeline(scope) as timeline:
        with scope:
            loss = model(small_input()).square().mean()
        loss.backward()
    assert timeline.out_bytes == scope.stats().out_bytes > 0
    assert scope.stats().timeline() is timeline


def test_a_backward_that_fails_ends_with_the_record(tmp_path):
    model = offloaded(small_model(), tmp_path)

    def fail(gradient):
        raise ZeroDivisionError

    handle = model[0].up.weight.register_hook(fail)
    with memsys.record_timeline(model) as timeline, pytest.raises(ZeroDivisionError):
        step(model, small_input())
    assert [slice_.name for slice_ in timeline.lane("compute")] == ["forward", "backward"]
    handle.remove()
    with memsys.record_timeline(model) as timeline:
        step(model, small_input())
    assert_sound(timeline)


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_is_one_record(seed, tmp_path):
    def record() -> tuple[Slice, ...]:
        runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
        runtimes.override_runtime(runtime, _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write)))
        try:
            model = offloaded(small_model(), tmp_path, lambda saved: memsys.FILE if saved.index % 3 else memsys.HOST)
            with memsys.record_timeline(model) as timeline:
                loss = model(small_input()).square().mean()
                session_of(model).drain()  # sources leave: no reaper runs beside a simulation
                loss.backward()
            memsys.restore(model)
        finally:
            runtimes.override_runtime(None)
        assert_sound(timeline)
        return timeline.slices

    first = record()
    assert {*LINKS, "compute"} <= {slice_.lane for slice_ in first}
    assert record() == first


def test_misuse_says_what_to_do(tmp_path):
    model = small_model()
    with pytest.raises(memsys.InputError, match=r"call memsys\.offload"), memsys.record_timeline(model):
        pass
    offloaded(model, tmp_path)
    with pytest.raises(memsys.InputError, match=r"with memsys\.record_timeline"):
        memsys.stats(model).timeline()
    other = memsys.record_timeline(model)
    with memsys.record_timeline(model) as timeline, pytest.raises(memsys.InputError, match="already"), other:
        pass
    assert timeline.slices == ()
    assert "timeline" not in memsys.stats(model).as_dict()


def test_a_planned_step_is_shown_beside_the_measured_one(tmp_path):
    model = memsys.offload(small_model(), device_budget="160KiB", min_bytes=1, spill_dir=str(tmp_path))
    for _ in range(3):
        step(model, small_input())
    with memsys.record_timeline(model) as timeline:
        step(model, small_input())
    assert_sound(timeline)
    plan = memsys.stats(model).plan
    assert plan is not None and plan.declined is None
    planned_out = sum(slice_.bytes for slice_ in timeline.planned.slices if slice_.lane == "file out")
    assert planned_out == plan.predicted.out_bytes > 0
    assert max(bytes_ for _, bytes_ in timeline.planned.levels["device"]) == plan.predicted.peak_device_bytes
    timeline.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert {event["pid"] for event in trace["traceEvents"]} == {1, 2}
