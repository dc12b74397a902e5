"""The planner's own plan, simulated: it fits, it is not beaten by a policy that looks at no numbers, it declines."""

from __future__ import annotations

import pytest

import memsys
from memsys.cli import main
from memsys.planning.policies import NAMES

pytest.importorskip("memsys.planning.solve", reason="the planner's solver is not there")

CELLS = [
    ("gpt-7b", "a800", 256 << 10, 8, "20GiB", "256GiB"),
    ("gpt-7b", "a800", 32 << 10, 8, "4GiB", "64GiB"),
    ("llama3-8b-fused", "h200", 32 << 10, 1, "30GiB", "100GiB"),
    ("llama-tiny", "rtx4090", 16 << 10, 1, "100MiB", "1GiB"),
]


@pytest.mark.parametrize(("shape", "gpu", "seq", "gpus", "device", "host"), CELLS)
def test_the_plan_is_not_beaten(shape: str, gpu: str, seq: int, gpus: int, device: str, host: str) -> None:
    options = {"device_budget": device, "host_budget": host}
    tried = {name: memsys.simulate(shape, gpu, seq, gpus, name, **options) for name in NAMES}
    assert tried["plan"].fits
    fitting = {name: found.step_us for name, found in tried.items() if found.fits}
    assert len(fitting) > 1
    assert fitting["plan"] <= 1.03 * min(fitting.values()), fitting
    assert tried["plan"].predicted == tried["plan"].plan.predicted


def test_it_declines_where_everything_fits() -> None:
    found = memsys.simulate("gpt-tiny", "h200", 4096)
    assert found.plan.declined
    assert found.added_us == pytest.approx(0, abs=1e-3)


def test_the_command_says_that_it_declines(capsys) -> None:
    assert main.main(["plan", "--model", "gpt-tiny", "--gpu", "h200", "--seq", "4096"]) == 0
    assert "declined: " in capsys.readouterr().out
