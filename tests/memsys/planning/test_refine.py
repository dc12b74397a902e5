"""HiGHS never makes a plan worse, and its relaxation bounds every plan."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_traces import decoder_trace, hardwares, plans, tight_budgets, traces

from memsys.errors import BudgetError, InputError, UnsupportedError
from memsys.planning.menu import Menu
from memsys.planning.relaxed import relax
from memsys.planning.schedule import schedule
from memsys.planning.solve import solve
from memsys.planning.swap_plan import Budgets, Hardware, Link

HAS_HIGHS = "highspy" in sys.modules or __import__("importlib.util").util.find_spec("highspy") is not None
needs_highs = pytest.mark.skipif(not HAS_HIGHS, reason='HiGHS is not installed: pip install "memsys[plan]"')


@needs_highs
@given(traces(), hardwares(), st.sampled_from([0.2, 0.4, 0.6, 0.8]), st.data())
@settings(max_examples=100)
def test_no_plan_that_fits_goes_below_the_relaxation(trace, hardware, share, data) -> None:
    budgets = tight_budgets(trace, share, data.draw(st.sampled_from([None, 0.3])))
    shares = relax(Menu(trace), hardware, budgets, 5.0)
    for _ in range(8):
        found = schedule(trace, data.draw(plans(trace, hardware)), hardware, budgets)
        if found.fits:
            assert shares is not None
            assert found.predicted.step_us >= shares.bound_us * (1 - 1e-9)


@needs_highs
@given(traces(), hardwares(), st.sampled_from([0.3, 0.5, 0.7]), st.booleans())
@settings(max_examples=25)
def test_a_refined_plan_is_never_slower_and_its_bound_never_lower(trace, hardware, share, may_rerun) -> None:
    budgets = tight_budgets(trace, share)
    try:
        greedy = solve(trace, hardware, budgets, may_rerun=may_rerun)
    except BudgetError:
        return
    exact = solve(trace, hardware, budgets, exact=True, may_rerun=may_rerun)
    assert exact.predicted.step_us <= greedy.predicted.step_us * (1 + 1e-9)
    assert greedy.bound_us <= exact.bound_us <= exact.predicted.step_us * (1 + 1e-9)


@needs_highs
def test_the_relaxation_knows_the_window_where_the_plain_bound_does_not() -> None:
    trace = decoder_trace(layer_count=8, row_count=64)
    hardware, budgets = Hardware(None, Link(5e10, 5e10), 8 << 20), Budgets(trace.saved_bytes // 4)
    greedy, exact = solve(trace, hardware, budgets), solve(trace, hardware, budgets, exact="auto")
    assert greedy.bound_us == trace.forward_us + trace.backward_us < exact.bound_us
    assert exact.gap < 0.03


def test_without_highs_an_exact_plan_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = decoder_trace(layer_count=2)
    hardware, budgets = Hardware(None, Link(1e9, 1e9)), Budgets(trace.saved_bytes // 2)
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(UnsupportedError, match=r"memsys\[plan\]"):
        solve(trace, hardware, budgets, exact=True)
    assert solve(trace, hardware, budgets, exact="auto").solver == "greedy"
    with pytest.raises(InputError, match="'fully'"):
        solve(trace, hardware, budgets, exact="fully")
