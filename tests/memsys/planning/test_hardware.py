"""Figures and named GPUs: every number has a source and lies in its interval."""

from __future__ import annotations

import pytest

from memsys.errors import InputError
from memsys.planning.gpus import MACHINES, find_machine
from memsys.planning.hardware import Corner, Figure, between, exactly


def test_a_figure_lies_in_its_interval() -> None:
    assert between(1.0, 3.0, "x").value == 2.0
    assert exactly(2.0, "x").at(Corner.LOW) == 2.0
    for wrong in ((3.0, 1.0, 2.0), (1.0, 0.0, 2.0), (1.0, 1.5, 2.0)):
        with pytest.raises(InputError, match="interval"):
            Figure(*wrong, "x")


@pytest.mark.parametrize("name", list(MACHINES))
def test_every_number_names_its_source(name: str) -> None:
    for item, figure in MACHINES[name].figures().items():
        assert len(figure.source) > 6, item
        if "assumed" in figure.source:
            assert not figure.is_verified, item
        if item.endswith("share") and item != "both_share":
            assert figure.high <= 1, item


@pytest.mark.parametrize("name", list(MACHINES))
def test_rates_rise_from_corner_to_corner(name: str) -> None:
    low, middle, high = (MACHINES[name].rates(corner) for corner in (Corner.LOW, Corner.MIDDLE, Corner.HIGH))
    for item in ("peak_flops", "gemm_flops", "attention_forward_flops", "memory_rate", "collective_rate"):
        assert getattr(low, item) <= getattr(middle, item) <= getattr(high, item)
    assert low.host.out_rate <= middle.host.out_rate <= high.host.out_rate
    assert middle.gemm_flops < middle.peak_flops


def test_the_memo_machine_is_an_a100_with_fewer_links() -> None:
    a800, a100 = find_machine("A800"), find_machine("a100")
    assert a800.peak_flops.value == 312e12
    assert a800.collective_rate.high < a100.collective_rate.low
    assert {name for name in a800.figures() if a800.figures()[name] != a100.figures()[name]} == {"collective_rate"}


def test_a_name_that_is_none() -> None:
    with pytest.raises(InputError, match="known are a800"):
        find_machine("tpu")
