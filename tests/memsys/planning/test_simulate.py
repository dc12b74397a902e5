"""memsys.simulate: its steps against closed forms, its memory against hand counts, its refusals."""

from __future__ import annotations

import pytest

import memsys
from memsys.planning import memo
from memsys.planning.compute import ComputeModel, Load
from memsys.planning.gpus import find_machine
from memsys.planning.hardware import Corner
from memsys.planning.longest import longest_sequences
from memsys.planning.policies import NAMES, policy_plan
from memsys.planning.schedule import schedule
from memsys.planning.shapes import SHAPES
from memsys.planning.simulation import USABLE_SHARE, Limits, Simulation
from memsys.planning.swap_plan import Budgets, Choice

FIXED = [name for name in NAMES if name != "plan"]


def simulated(policy: str, seq: int = 32 << 10, **options) -> Simulation:
    return memsys.simulate("gpt-7b", "a800", seq, 8, policy, **options)


def extra_us(found: Simulation) -> float:
    """The step without head and optimizer, which no closed form has."""
    model = ComputeModel(found.model, find_machine(found.machine).rates(), Load(found.seq, found.batch, found.gpus))
    layers = model.shape.layers * (model.layer_times().forward_us + model.layer_times().backward_us)
    return found.trace.forward_us + found.trace.backward_us - layers


def test_keeping_everything_adds_nothing() -> None:
    found = simulated("none")
    assert found.added_us == pytest.approx(0, abs=1e-3)
    assert found.peak_bytes == {"device": found.trace.saved_bytes, "host": 0, "file": 0}
    assert found.alpha is None


@pytest.mark.parametrize("seq", [256 << 10, 512 << 10])
def test_the_steps_are_the_closed_forms_where_everything_is_hidden(seq: int) -> None:
    model = ComputeModel(SHAPES["gpt-7b"], find_machine("a800").rates(), Load(seq, 1, 8))
    for host, policy in ((None, "checkpoint"), (None, "tokenwise"), (100 << 30, "tokenwise")):
        found = simulated(policy, seq, host_budget=host)
        times = memo.step_times(model, host)
        expected = times.full_recompute if policy == "checkpoint" else times.token_wise
        assert found.predicted.step_us - extra_us(found) == pytest.approx(expected, rel=0.005)


def test_bytes_below_are_the_formula() -> None:
    seq, alpha = 1 << 20, (2048 / 30 - 16) / 112
    found = simulated("tokenwise", seq, host_budget=(2 << 40) // 8)
    layer = 16 * seq * 4096 * 2 / 8
    assert found.fits
    assert found.alpha == pytest.approx(alpha, abs=1 / seq)
    assert found.peak_bytes["host"] == pytest.approx(30 * layer * (2 + 14 * alpha) / 16, rel=1e-5)
    assert found.peak_bytes["host"] <= (2 << 40) // 8
    assert found.remade_us == pytest.approx(30 * (1 - alpha) * found.trace.segments[0].remake_us, rel=1e-4)


def test_mfu_is_flops_over_the_peak() -> None:
    found = simulated("checkpoint")
    flops = SHAPES["gpt-7b"].model_flops(found.seq)
    assert found.mfu == pytest.approx(flops / (8 * 312e12 * found.step_us / 1e6))
    assert found.step_us > found.predicted.step_us  # the optimizer


def test_more_gpus_of_one_machine_are_faster_and_less_than_linear() -> None:
    one, eight = (memsys.simulate("llama-tiny", "h100", 65536, gpus, "none") for gpus in (1, 2))
    assert one.step_us / 2 < eight.step_us < one.step_us
    assert one.peak_bytes["device"] == 2 * eight.peak_bytes["device"]


@pytest.mark.parametrize("policy", FIXED)
def test_faster_figures_make_faster_steps(policy: str) -> None:
    low, middle, high = (simulated(policy, corner=corner) for corner in Corner)
    assert low.step_us > middle.step_us > high.step_us
    assert low.mfu < middle.mfu < high.mfu


def test_gpus_of_one_machine_share_its_drives() -> None:
    one, eight = (memsys.simulate("gpt-7b", "a800", 4096, gpus, "all", host_budget=0) for gpus in (1, 8))
    assert eight.hardware.file.out_rate == one.hardware.file.out_rate / 8
    assert eight.hardware.host == one.hardware.host
    assert eight.peak_bytes["host"] == 0 < eight.peak_bytes["file"]


def test_what_does_not_fit_says_so() -> None:
    found = simulated("none", 1 << 20)
    assert not found.fits
    assert found.overruns[0].tier == "device"
    assert "does NOT fit: device wants" in str(found)
    given = simulated("none", device_budget="1GiB")
    assert given.overruns[0].budget_bytes == (1 << 30) - given.trace.transient_peak_bytes


def test_a_model_too_large_for_the_gpu_does_not_fit_with_anything() -> None:
    found = memsys.simulate("llama3-70b", "a100", 1024, 1, "all")
    assert not found.fits


def test_the_device_budget_is_what_the_model_leaves() -> None:
    found = simulated("all")
    there = int((80 << 30) * USABLE_SHARE)
    taken = sum(found.trace.resident_bytes.values()) + found.trace.transient_peak_bytes
    assert found.budgets.device_bytes == there - taken


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("gpt-9b", "a800", 10), "known are"), (("gpt-7b", "k80", 10), "known are"), (("gpt-7b", "a800", 0), "at least 1"),
     (("gpt-7b", "a800", 10, 0), "at least 1"), (("gpt-7b", "a800", 10, 1, "magic"), "none of plan")],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(memsys.InputError, match=words):
        memsys.simulate(*arguments)


def test_a_share_of_an_unknown_host_is_refused() -> None:
    with pytest.raises(memsys.InputError, match="give bytes"):
        simulated("all", host_budget="80%")


def test_checkpoint_and_host_moves_inputs_only() -> None:
    found = simulated("checkpoint+host")
    kinds = {(span.is_layer_input, found.plan.choices[span.index]) for span in found.trace.spans if span.layer >= 0}
    assert kinds == {(True, Choice.HOST), (False, Choice.RECOMPUTE)}
    assert found.peak_bytes["host"] == sum(span.bytes for span in found.trace.spans if span.is_layer_input)


def test_a_policy_steps_the_same_by_itself() -> None:
    """What simulate reports is what schedule says of the same plan."""
    found = simulated("tokenwise")
    again = schedule(found.trace, found.plan, found.hardware, found.budgets).predicted
    assert again == found.predicted
    assert policy_plan("none", found.trace, found.hardware, Budgets()).choices == (Choice.KEEP,) * len(
        found.trace.spans
    )


def test_the_longest_sequences_fit_and_hardly_longer_ones_do_not() -> None:
    shape, machine, limits = SHAPES["gpt-7b"], find_machine("a800"), Limits(host=200 << 30, file=400 << 30)
    found = longest_sequences(shape, machine, 8, 1, limits)
    assert list(found) == ["nothing", "checkpoint", "memsys host", "memsys host+file"]
    lengths = [item.seq for item in found.values()]
    assert 0 < lengths[0] < lengths[1] < lengths[2] <= lengths[3]
    for item, policy in zip(found.values(), ("none", "checkpoint"), strict=False):
        assert item.last.fits and item.last.seq == item.seq
        assert not simulated(policy, int(item.seq * 1.03)).fits
        assert item.stopped_by == "device"


def test_a_host_that_ends_first_bounds_the_length() -> None:
    limits = Limits(host=8 << 30, file=64 << 30)
    found = longest_sequences(SHAPES["gpt-7b"], find_machine("a800"), 8, 1, limits)
    assert found["memsys host"].stopped_by == "host"
    # 32 layer inputs of 1 KiB a token and GPU: 8 GiB hold 2^18 tokens.
    assert found["memsys host"].seq == pytest.approx(1 << 18, rel=0.02)
    assert found["memsys host+file"].seq > found["memsys host"].seq
