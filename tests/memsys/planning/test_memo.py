"""What is exact in the paper: sizes, alpha, the crossover, the cost of recomputing; each against its own formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memsys.planning import memo
from memsys.planning.compute import ComputeModel, Load
from memsys.planning.decoder import Kind
from memsys.planning.gpus import find_machine
from memsys.planning.hardware import Corner, Rates
from memsys.planning.shapes import SHAPES
from memsys.planning.swap_plan import Link
from memsys.planning.synthetic import synthetic_trace

GPT = SHAPES["gpt-7b"]
MILLION = 1 << 20
# One achieved rate for everything, memory and collectives free: the model of the formulas.
FLAT = Rates(312e12, 170e12, 170e12, 170e12, 1e30, 1e30, Link(11e9, 11e9), None)


def memo_model(seq: int, rates: Rates | None = None) -> ComputeModel:
    return ComputeModel(GPT, rates or find_machine("a800").rates(), Load(seq, 1, 8))


@pytest.mark.parametrize("name", ["gpt-7b", "gpt-13b", "gpt-30b", "gpt-65b"])
def test_a_layer_saves_16_bsh_elements(name: str) -> None:
    shape = SHAPES[name]
    for batch, seq in ((1, 4096), (3, 2048)):
        model = ComputeModel(shape, FLAT, Load(seq, batch))
        assert memo.layer_bytes(model).total == 16 * batch * seq * shape.hidden * 2
        assert memo.skeletal_bytes(shape, seq, batch) == shape.layers * 16 * batch * seq * shape.hidden * 2


def test_7b_at_a_million_tokens_saves_4096_gib() -> None:
    assert memo.skeletal_bytes(GPT, MILLION) == 4096 << 30
    trace = synthetic_trace(memo_model(MILLION))
    assert 8 * sum(span.bytes for span in trace.spans if span.layer >= 0) == 4096 << 30
    assert 32 * sum(span.bytes for span in trace.spans if span.is_layer_input and span.layer == 0) == 16 * 2 * (1 << 30)


def test_attention_output_is_one_sixteenth() -> None:
    sizes = memo.layer_bytes(memo_model(MILLION))
    assert sizes.must * 8 == sizes.total


@pytest.mark.parametrize("seq", [64 << 10, 192 << 10, 512 << 10, MILLION])
@pytest.mark.parametrize("rate", [8e9, 12.5e9, 25e9])
@pytest.mark.parametrize("host_bytes", [None, 64 << 30, 256 << 30])
def test_alpha_is_the_papers_closed_form(seq: int, rate: float, host_bytes: int | None) -> None:
    model = memo_model(seq)
    token = seq * GPT.hidden * 2 / 8  # S of one unit
    forward_s = model.layer_times().forward_us / 1e6
    bounds = [1.0, (rate * forward_s - 2 * token) / (14 * token)]
    if host_bytes is not None:
        bounds.append((host_bytes / 30 - 2 * token) / (14 * token))
    assert memo.alpha(model, rate, host_bytes) == pytest.approx(max(0.0, min(bounds)), rel=1e-12)


def test_the_papers_host_holds_alpha_below_one_half_at_a_million() -> None:
    """2 TiB for eight GPUs: (2048 / 30 - 16) / 112 of the rows, whatever the link."""
    assert memo.alpha_by_host(memo_model(MILLION), (2 << 40) / 8) == pytest.approx((2048 / 30 - 16) / 112, rel=1e-12)


@pytest.mark.parametrize("rate", [5e9, 11e9, 25e9])
def test_crossover_is_the_formula_where_its_assumptions_hold(rate: float) -> None:
    """m·F/B - P/h, of the reference model: one rate, causal attention, no memory-bound operation."""
    formula = 16 * 170e12 / rate / 8 * 8 - GPT.layer_parameters / GPT.hidden
    assert memo.crossover_seq(GPT, FLAT, parallel=8, out_rate=rate) == pytest.approx(max(0.0, formula), rel=1e-9)


def test_alpha_reaches_one_at_the_crossover_and_not_before() -> None:
    rates = find_machine("a800").rates()
    seq = memo.crossover_seq(GPT, rates, 8)
    for factor, full in ((0.99, False), (1.01, True)):
        bound = memo.alpha_by_link(memo_model(int(seq * factor), rates), rates.host.out_rate)
        assert (bound >= 1) is full
    assert memo.crossover_seq(GPT, rates, 8, memo.crossover_rate(GPT, rates, 192 << 10, 8)) == pytest.approx(192 << 10)


def test_a_link_fast_enough_hides_every_length() -> None:
    assert memo.crossover_seq(GPT, FLAT, 8, out_rate=1e15) == 0.0


def test_the_papers_192k_lies_within_the_crossovers_interval() -> None:
    """The slowest compute with the fastest link against the fastest compute with the slowest link."""
    low, high = (find_machine("a800").rates(corner) for corner in (Corner.LOW, Corner.HIGH))
    shortest = memo.crossover_seq(GPT, low, 8, high.host.out_rate)
    longest = memo.crossover_seq(GPT, high, 8, low.host.out_rate)
    assert shortest < 192 << 10 < longest


def test_recomputing_costs_a_third_where_backward_is_twice_the_forward() -> None:
    """Products alone have B = 2F, so 4/3; flash attention has B = 2.5 F, so 9/7."""
    model = ComputeModel(GPT, FLAT, Load(4096))
    layer = replace(model.layer, operations=tuple(o for o in model.layer.operations if o.kind is Kind.GEMM))
    model.layer = layer
    assert memo.recompute_ratio(model) == pytest.approx(4 / 3, rel=1e-12)
    model.layer = replace(layer, operations=tuple(o for o in memo_model(4096).layer.operations
                                                  if o.kind is Kind.ATTENTION))  # fmt: skip
    assert memo.recompute_ratio(model) == pytest.approx(4.5 / 3.5, rel=1e-12)


def test_full_recompute_is_the_ratio_times_what_hides_everything() -> None:
    rates = find_machine("a800").rates()
    model = memo_model(MILLION, rates)
    times = memo.step_times(model)
    assert times.alpha == 1.0
    assert times.full_recompute / times.full_swap == pytest.approx(memo.recompute_ratio(model), rel=1e-12)
    assert times.token_wise == times.full_swap


def test_who_wins_on_each_side_of_the_crossover() -> None:
    """Token-wise is never slower than either; below the crossover it beats both, above it equals full swap."""
    rates = find_machine("a800").rates()
    seq = memo.crossover_seq(GPT, rates, 8)
    below, above = (memo.step_times(memo_model(int(seq * factor), rates)) for factor in (0.5, 2.0))
    assert below.token_wise < below.full_swap and below.token_wise < below.full_recompute
    assert above.token_wise == above.full_swap < above.full_recompute
    held = memo.step_times(memo_model(MILLION, rates), (2 << 40) / 8)
    assert held.full_swap == float("inf")
    assert held.token_wise < held.full_recompute


def test_flash_attention_dominates_beyond_576k_as_in_figure_6() -> None:
    """The paper measured more than 90 % from 576K on; the inputs' interval says 87.6-89.5 %."""
    shares = []
    for corner in (Corner.LOW, Corner.HIGH):
        times = memo_model(576 << 10, find_machine("a800").rates(corner)).layer_times()
        shares.append(times.attention_us / times.forward_us)
    assert min(shares) > 0.87 and max(shares) < 0.90
