"""The thread that lets go of sources: where the system gives none, a step is right and leaves nothing all the same."""

from __future__ import annotations

import threading

import pytest
from built import needs_memsys

needs_memsys()

from gradients import TIERS, assert_idle, assert_same, offloaded, small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys import _C, runtimes  # noqa: E402


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("tier", list(TIERS))
def test_a_step_without_the_thread(tier: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = step(small_model(), small_input())
    model = offloaded(small_model(), tmp_path, TIERS[tier])
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", refuse)
        assert_same(step(model, small_input()), wanted)
        assert_idle(model)
    assert memsys.stats(model).fallback_count == 0
    assert_same(step(model, small_input()), wanted)
    assert_idle(model)
    memsys.restore(model)


def test_a_thread_of_the_core_that_does_not_start_is_told_as_an_error_of_memsys(tmp_path) -> None:
    runtime = _C.Runtime(_C.DeviceKind.host, faults=_C.FaultSeam.faulty)
    runtimes.override_runtime(runtime)
    try:
        model = offloaded(small_model(), tmp_path)
        runtime.arm_start(0)
        with pytest.raises(memsys.MemsysError, match="cannot start a thread"):
            step(model, small_input())
        assert_same(step(model, small_input()), step(small_model(), small_input()))
        assert_idle(model)
    finally:
        runtimes.override_runtime(None)
