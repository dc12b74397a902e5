"""Worker processes that step in turn: the losses of this process, in the order given, and never a process left over."""

from __future__ import annotations

import os
import subprocess

import psutil
import pytest

from memsys.cli.measure import measure
from memsys.cli.setting import Setting
from memsys.cli.turns import MeasureError, Worker, measure_in_turns


@pytest.fixture
def tiny(tmp_path) -> Setting:
    (tmp_path / "text").write_bytes(os.urandom(4096))
    return Setting(layers=2, width=64, seq=64, device="cpu", data=str(tmp_path / "text"))


def test_workers_take_turns_and_give_the_losses_of_this_process(tiny, monkeypatch):
    before = set(psutil.Process().children())  # other tests leave helpers of multiprocessing
    order = []
    step = Worker.step
    monkeypatch.setattr(Worker, "step", lambda worker: (order.append(worker.mode), step(worker)))
    results = measure_in_turns(tiny, ("plain", "checkpoint"), steps=1)
    assert order == ["plain", "checkpoint", "checkpoint", "plain"]
    for mode, result in results.items():
        expected = measure(tiny, mode, steps=1)
        assert set(result) == set(expected)
        assert result["mode"] == mode
        assert result["loss"] == expected["loss"]
        assert result["growth_bytes"] > 0
    assert set(psutil.Process().children()) <= before


def test_a_failing_worker_says_why(tiny):
    with pytest.raises(MeasureError, match=r"measuring plain ended with status 1: .*missing"):
        measure_in_turns(Setting(**vars(tiny) | {"data": "/missing"}), ["plain"])


def test_a_worker_that_died_between_two_steps_is_named(tiny):
    with Worker(tiny, "plain", steps=1) as worker:
        worker.read()
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(MeasureError, match="measuring plain ended with status -9"):
            worker.step()


def test_a_worker_that_is_done_waits_for_the_others(tiny):
    with Worker(tiny, "plain", steps=1) as worker:
        worker.read()
        worker.step()
        worker.step()
        assert worker.read()["mode"] == "plain"
        with pytest.raises(subprocess.TimeoutExpired):
            worker._process.wait(timeout=3)


def test_a_failure_ends_the_other_workers(tiny, monkeypatch):
    before = set(psutil.Process().children())
    monkeypatch.setattr(Worker, "step", lambda worker: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_in_turns(tiny, ("plain", "checkpoint"), steps=1)
    assert set(psutil.Process().children()) <= before
