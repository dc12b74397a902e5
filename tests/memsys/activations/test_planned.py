"""A plan is carried out span by span, to the last bit of the gradients, where the forward is the planned one."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from dataclasses import replace

import pytest
import torch
from built import needs_memsys
from torch import nn

needs_memsys()

from architectures import one_step, tiny_model  # noqa: E402
from gradients import assert_idle, assert_same, gradients, small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys.activations import calibrate, planner  # noqa: E402
from memsys.cli.gpt import GPT, GPTShape  # noqa: E402
from memsys.planning.plan import Plan  # noqa: E402
from memsys.planning.swap_plan import Choice, Hardware, Link, SwapPlan  # noqa: E402

HARDWARE = Hardware(Link(1e9, 1e9))
MIXED = (Choice.KEEP, Choice.FILE, Choice.RECOMPUTE, Choice.HOST)


@pytest.fixture(autouse=True)
def fixed_links(monkeypatch):
    monkeypatch.setattr(calibrate, "measured_hardware", lambda *_: HARDWARE)


def mixed_swap(trace, hardware, budgets):
    """Every choice in turn, whatever it costs."""
    return SwapPlan(tuple(itertools.islice(itertools.cycle(MIXED), len(trace.spans))))


@pytest.fixture
def mixed(monkeypatch):
    monkeypatch.setattr(planner, "make_swap", mixed_swap)


def planned(model, plan, tmp_path, **options):
    return memsys.offload(model, plan=plan, spill_dir=tmp_path, **options)


def plan_of(model, *inputs, budget="64MiB", tmp_path, **options):
    return memsys.plan(model, inputs, device_budget=budget, min_bytes=1, spill_dir=tmp_path, **options)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 8, 3, padding=1), nn.SiLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16 * 16, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


CASES = {
    "mixers": (small_model, small_input),
    "encoder": (encoder, lambda: torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(3))),
    "convolutions": (Conv, lambda: torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))),
}


@pytest.mark.parametrize("name", CASES)
def test_every_choice_gives_the_same_bits(name, tmp_path, mixed):
    build, make_input = CASES[name]
    plain, x = build(), make_input()
    model = copy.deepcopy(plain)
    plan = plan_of(model, x, tmp_path=tmp_path)
    planned(model, plan, tmp_path)
    for _ in range(3):  # what is computed again is proven in the first
        assert_same(step(model, x), step(plain, x))
    stats = memsys.stats(model)
    assert stats.plan.counts["keep"] > 0 and stats.plan.counts["file"] > 0
    assert stats.out_bytes > 0
    assert_idle(model)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "opt", "mixtral", "mamba"])
def test_real_architectures(kind, tmp_path, mixed):
    plain = tiny_model(kind)
    model = copy.deepcopy(plain)
    memsys.offload(model, device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    for _ in range(3):
        assert_same(one_step(model), one_step(plain))
    assert memsys.stats(model).plan.plan_count == 1
    assert_idle(model)


def test_what_the_plan_says_is_what_happens(tmp_path, mixed):
    model, x = small_model(), small_input()
    plan = plan_of(model, x, tmp_path=tmp_path)
    planned(model, plan, tmp_path)
    step(model, x)
    before = memsys.stats(model)
    loss = model(x).square().mean()
    kept_bytes = memsys.stats(model).kept_bytes
    loss.backward()
    after = memsys.stats(model)
    remade = [s for s, c in zip(plan.trace.spans, plan.swap.choices, strict=True) if c is Choice.RECOMPUTE]
    remade_bytes = sum(span.bytes for span in remade if span.remake_us is not None)
    moved_bytes = plan.trace.saved_bytes - plan.bytes_of_kept - remade_bytes
    assert kept_bytes == plan.bytes_of_kept > 0
    assert after.remade_bytes - before.remade_bytes == remade_bytes > 0
    assert after.out_bytes - before.out_bytes == moved_bytes > 0


def test_a_trace_tells_what_the_step_did(tmp_path, mixed):
    model, x = small_model(), small_input()
    trace = plan_of(model, x, tmp_path=tmp_path).trace
    assert {span.layer for span in trace.spans} == {0, 1, 2}
    assert [span.index for span in trace.spans] == list(range(len(trace.spans)))
    saved_us = [span.saved_us for span in trace.spans]
    assert saved_us == sorted(saved_us) and saved_us[0] >= 0 and saved_us[-1] <= trace.forward_us
    for span in trace.spans:
        assert trace.forward_us <= span.first_use_us <= span.last_use_us <= trace.forward_us + trace.backward_us
    assert trace.spans[0].first_use_us > trace.spans[-1].first_use_us
    assert [span.layer for span in trace.spans if span.is_layer_input] == [0, 1, 2]
    cheap = [span for span in trace.spans if span.remake_us is not None]
    assert {span.producer for span in cheap} >= {"GeluBackward0", "MulBackward0"}
    assert all(span.remake_us > 0 and span.remake_inputs for span in cheap)
    assert trace.resident_bytes["parameters"] == sum(p.nbytes for p in model.parameters())


def test_planning_leaves_the_model_as_it_was(tmp_path, mixed):
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 64))
    model(small_input()).sum().backward()
    before = copy.deepcopy(model)
    state, wanted = torch.get_rng_state(), gradients(model)
    plan_of(model, small_input(), tmp_path=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(gradients(model), wanted)
    assert_same(model.state_dict().values(), before.state_dict().values())
    assert "forward" not in model.__dict__
    assert not model[0]._forward_pre_hooks and not model[0]._forward_hooks


def test_planning_an_offloaded_model_leaves_it_offloaded(tmp_path, mixed):
    model = memsys.offload(small_model(), policy="all", min_bytes=1, spill_dir=tmp_path)
    step(model, small_input())
    before = memsys.stats(model).packed_count
    plan_of(model, small_input(), tmp_path=tmp_path)
    assert memsys.stats(model).packed_count == before > 0
    step(model, small_input())
    assert memsys.stats(model).packed_count == 2 * before


def test_a_plan_is_saved_and_loaded(tmp_path, mixed):
    model, x = small_model(), small_input()
    plan = plan_of(model, x, tmp_path=tmp_path)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    planned(model, path, tmp_path)
    assert_same(step(model, x), step(small_model(), x))
    assert memsys.stats(model).plan.counts == {c.value: plan.swap.choices.count(c) for c in MIXED}
    assert "keep:" in str(plan) and "budget 64.0 MiB" in str(plan)


@pytest.mark.parametrize("text", ["", "{}", '{"format": "memsys-plan-2"}', '{"format": "memsys-trace-2"}'])
def test_a_file_that_is_no_plan(text, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(memsys.InputError, match=r"memsys\.plan"):
        memsys.offload(small_model(), plan=path)


def test_plans_that_are_refused(tmp_path, mixed):
    plan = plan_of(small_model(), small_input(), tmp_path=tmp_path)
    with pytest.raises(memsys.InputError, match="policy='all'"):
        memsys.offload(small_model(), plan=plan, policy="all")
    with pytest.raises(memsys.InputError, match="device_budget"):
        memsys.plan(small_model(), (small_input(),), device_budget=None)
    with pytest.raises(memsys.InputError, match="min_bytes"):
        memsys.plan(small_model(), (small_input(),), device_budget="1GiB", min_bytes=1 << 40)


def scenario_retained(model):
    loss = model(small_input()).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    return gradients(model)


def scenario_accumulated(model):
    losses = [model(small_input(seed)).square().mean() for seed in (1, 2, 3)]
    sum(losses).backward()
    return gradients(model)


def scenario_shapes(model):
    found = []
    for rows in (64, 48, 64, 48, 96, 48, 64, 96, 96):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        found += step(model, x)
    return found


def scenario_dropped(model):
    model(small_input())
    return step(model, small_input())


def scenario_failed(model):
    with pytest.raises(RuntimeError):
        model(torch.zeros(3, 5))
    return step(model, small_input())


SCENARIOS = [scenario_retained, scenario_accumulated, scenario_shapes, scenario_dropped, scenario_failed]


@pytest.mark.parametrize("budget", ["600KiB", "64MiB"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.removeprefix("scenario_"))
def test_scenarios_within_a_hard_budget(scenario, budget, tmp_path, mixed):
    plain = small_model()
    model = memsys.offload(copy.deepcopy(plain), device_budget=budget, min_bytes=1, spill_dir=tmp_path)
    for _ in range(2):
        step(model, small_input())
        step(plain, small_input())
        model.zero_grad()
        plain.zero_grad()
        assert_same(scenario(model), scenario(plain))
    stats = memsys.stats(model)
    assert stats.peak_device_bytes <= {"600KiB": 600 << 10, "64MiB": 64 << 20}[budget]
    assert_idle(model)


def test_several_threads(tmp_path, mixed):
    model = memsys.offload(small_model(), device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    inputs = [small_input(seed, requires_grad=True) for seed in range(4)]
    wanted = []
    for x in inputs:
        twin = x.detach().clone().requires_grad_()
        small_model()(twin).square().mean().backward()
        wanted.append(twin.grad)

    def run(x):
        for _ in range(3):
            x.grad = None
            model(x).square().mean().backward()

    threads = [threading.Thread(target=run, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([x.grad for x in inputs], wanted)
    assert_idle(model)


def test_all_that_fits_stays_and_that_is_said(tmp_path, caplog):
    model, x = small_model(), small_input()
    memsys.offload(model, device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    for _ in range(3):
        assert_same(step(model, x), step(small_model(), x))
    stats = memsys.stats(model)
    assert "fit" in stats.plan.declined
    assert caplog.text.count("nothing is offloaded") == 1
    before = stats.out_bytes
    step(model, x)
    assert memsys.stats(model).out_bytes == before
    assert stats.plan.predicted.peak_device_bytes == sum(
        span.bytes for span in plan_of(model, x, tmp_path=tmp_path).trace.spans
    )


def test_without_a_budget_nothing_is_planned(tmp_path):
    model = memsys.offload(small_model(), min_bytes=1, spill_dir=tmp_path)
    step(model, small_input())
    step(model, small_input())
    assert memsys.stats(model).plan is None


def test_another_shape_is_planned_when_it_comes_again(tmp_path, mixed):
    model = memsys.offload(small_model(), device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    counts = []
    for rows in (64, 64, 32, 48, 32, 32, 48, 48, 64):
        step(model, torch.ones(rows, 64))
        stats = memsys.stats(model)
        counts.append(0 if stats.plan is None else stats.plan.plan_count)
    assert counts == [0, 1, 1, 1, 1, 2, 2, 3, 3]


def test_steps_that_go_on_taking_another_time_are_planned_anew(tmp_path, monkeypatch):
    made = []

    def slow_swap(trace, hardware, budgets):
        made.append(trace)
        predicted = planner.whole_fits(trace).predicted
        return SwapPlan((Choice.KEEP,) * len(trace.spans), predicted=replace(predicted, step_us=1.0))

    monkeypatch.setattr(planner, "make_swap", slow_swap)
    model = memsys.offload(small_model(), device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    counts = []
    for _ in range(30):
        step(model, small_input())
        counts.append(len(made))
    # The first from a cold step, the second from a warm one; then after 5, 10, ... steps.
    changes = [place for place in range(1, 30) if counts[place] > counts[place - 1]]
    assert changes == [1, 3, 8, 18]


def test_what_was_kept_leaves_where_the_room_is_needed(tmp_path):
    """Several forwards keep what each of them was planned to, and the next still finds room to move."""
    plain, x = small_model(), small_input()
    model = copy.deepcopy(plain)
    plan = plan_of(model, x, budget="100MiB", tmp_path=tmp_path)
    assert set(plan.swap.choices) == {Choice.KEEP}
    planned(model, plan, tmp_path, device_budget=plan.trace.saved_bytes)
    assert_same(scenario_accumulated(model), scenario_accumulated(plain))
    stats = memsys.stats(model)
    assert stats.out_bytes > 0 and stats.peak_device_bytes <= plan.trace.saved_bytes
    assert_idle(model)


def test_a_plan_by_rows_is_carried_out(tmp_path, monkeypatch):
    """Moves the first half of each segment's rows, and agrees with the plain model but for rounding."""

    def half(trace, hardware, budgets):
        assert trace.segments and all(segment.remake_us > 0 for segment in trace.segments)
        choices = tuple(Choice.FILE if span.segment < 0 else Choice.ROWS for span in trace.spans)
        return SwapPlan(choices, {segment.id: 0.5 for segment in trace.segments})

    monkeypatch.setattr(planner, "make_swap", half)
    torch.manual_seed(0)
    plain = GPT(GPTShape(layers=3, width=64, seq=64)).double()
    tokens = torch.randint(256, (2, 64))
    model = copy.deepcopy(plain)
    plan = plan_of(model, tokens, tmp_path=tmp_path, rows=True)
    planned(model, plan, tmp_path)
    for _ in range(3):
        found, wanted = step(model, tokens), step(plain, tokens)
        assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(found, wanted, strict=True))
    stats = memsys.stats(model)
    assert stats.plan.counts["rows"] == plan.swap.choices.count(Choice.ROWS) > 0
    assert stats.remade_bytes > 0 and stats.undivided_count == 0
    assert_idle(model)


def test_without_rows_no_tensor_is_divided(tmp_path, mixed):
    model = GPT(GPTShape(layers=2, width=64, seq=64))
    assert plan_of(model, torch.randint(256, (2, 64)), tmp_path=tmp_path).trace.segments == ()


def test_copies_and_pickles_of_a_model_that_is_planned_for(tmp_path, mixed):
    model, x = small_model(), small_input()
    memsys.offload(model, device_budget="64MiB", min_bytes=1, spill_dir=tmp_path)
    wanted = step(small_model(), x)
    for _ in range(3):
        assert_same(step(model, x), wanted)
        assert_same(step(copy.deepcopy(model), x), wanted)
        assert_same(step(pickle.loads(pickle.dumps(model)), x), wanted)
    memsys.restore(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
