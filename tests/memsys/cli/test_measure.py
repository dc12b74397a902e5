"""The worker that measures one way of training, the comparison on top, and the link rates."""

from __future__ import annotations

import os

import pytest
import torch

from memsys.cli import compare as compare_module
from memsys.cli.measure import measure
from memsys.cli.peak import PeakGrowth
from memsys.cli.setting import Setting
from memsys.report import links

KEYS = {"mode", "device", "setting", "median_step_s", "step_s", "growth_bytes", "growth_since"}
KEYS |= {"baseline_bytes", "loss", "stats"}


@pytest.fixture
def tiny(tmp_path) -> Setting:
    (tmp_path / "text").write_bytes(os.urandom(4096))
    return Setting(layers=2, width=64, seq=64, device="cpu", data=str(tmp_path / "text"))


def test_growth_is_the_peak_and_not_the_end():
    peak = PeakGrowth(torch.device("cpu"))
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    if not peak.is_reset:
        pytest.skip("/proc/self/clear_refs is refused here, so the peak counts from the start of the process")
    assert peak.growth_bytes() == pytest.approx(64 << 20, rel=0.2)
    assert PeakGrowth(torch.device("cpu")).growth_bytes() < 16 << 20


@pytest.mark.parametrize("mode", ["checkpoint", "save_on_cpu"])
def test_each_way_trains_to_the_same_bits(tiny, mode):
    plain = measure(tiny, "plain", steps=2)
    other = measure(tiny, mode, steps=2)
    assert set(plain) == KEYS
    assert plain["loss"] == other["loss"]
    assert len(plain["loss"]) == 3
    assert len(plain["step_s"]) == 2
    assert plain["loss"][0] != plain["loss"][1]


def test_comparison_gives_medians_and_ratios(monkeypatch, tiny):
    seconds = {"plain": iter([1.0, 2.0, 9.0]), "memsys": iter([1.5, 1.0, 9.9])}
    growth = {"plain": iter([101, 103, 105]), "memsys": iter([42, 44, 46])}

    def one(mode):
        result = {"growth_bytes": next(growth[mode]), "growth_since": "model loaded", "step_s": [next(seconds[mode])]}
        return result | {"loss": [1.0] if mode == "plain" else [2.0], "stats": None}

    monkeypatch.setattr(compare_module, "measure_in_turns", lambda _, modes, steps: {mode: one(mode) for mode in modes})
    compared = compare_module.compare(tiny, ("plain", "memsys"), rounds=3, steps=1)
    assert compared["plain"]["growth_bytes"] == 103
    assert compared["memsys"]["median_step_s"] == 1.5
    assert compared["memsys"]["step_ratio"] == 0.75
    assert compared["memsys"]["paired_step_ratio"] == pytest.approx(1.1)
    assert compared["plain"]["loss_equal"]
    assert not compared["memsys"]["loss_equal"]
    assert compare_module.table_rows(compared)[1][2] == "43%"


def test_file_rates_leave_nothing_behind(tmp_path):
    before = os.listdir("/proc/self/fd")
    rates = links.measure_file_rates(tmp_path, file_bytes=32 << 20)
    assert rates.write_rate > 0
    assert rates.read_rate > 0
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_file_rates_of_a_missing_folder_raise(tmp_path):
    with pytest.raises(OSError, match="missing"):
        links.measure_file_rates(tmp_path / "missing")


def test_copy_rate_is_that_of_a_memory():
    assert 1e8 < links.measure_copy_rate() < 1e12
