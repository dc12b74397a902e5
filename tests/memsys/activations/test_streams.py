"""A program on several streams: what one of them made and another saves goes back to its allocator only when its copy
and its readers are done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from built import needs_memsys

needs_memsys()

from stream_scenario import Action, Program, run  # noqa: E402

from memsys.activations.mover import Mover  # noqa: E402

SEEDS = range(6)


def crossing(seed: int) -> Program:
    """Three blocks on two streams; the window holds few sources, so that their streams have to wait for the copies."""
    blocks = (("norm", 0), ("views", 1), ("mlp", 0))
    actions = (Action("forward", 0), Action("backward", 0), Action("forward", 0, 1), Action("again", 0, 1))
    return Program(seed, blocks, actions, window_bytes=400, breath=30, places="host")


def test_what_another_stream_made_is_reused_after_its_copy() -> None:
    for seed in SEEDS:
        outcome = run(crossing(seed))
        assert outcome.kind == "", f"{outcome.message}\n{outcome.program}"


def test_the_wrong_stream_waiting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whichever stream is current waits for the copy, and not the one that uses the source."""
    order_oldest = Mover._order_oldest

    def order_current(mover: Mover) -> bool:
        for span in mover._departures:
            span.stream = mover.backend.current_stream()
        return order_oldest(mover)

    monkeypatch.setattr(Mover, "_order_oldest", order_current)
    assert any(run(crossing(seed)).kind == "order" for seed in SEEDS)


def test_a_reader_on_another_stream_that_is_not_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the allocator does not learn that the stream that saves a tensor reads it too; without memsys the graph
    would have kept it."""
    assert all(run(replace(crossing(seed), is_told=False)).kind == "" for seed in SEEDS)
    monkeypatch.setattr("simulated_torch.PoolBackend.note_user", lambda backend, storage: None)
    assert any(run(replace(crossing(seed), is_told=False)).kind == "order" for seed in SEEDS)
