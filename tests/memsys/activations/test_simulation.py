"""The real hooks under the simulated accelerator: every use of a block is checked against every other, on any schedule.

A missing edge is an error here even where the bytes happened to arrive in time.
"""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402
from memsys import _C, _tensor  # noqa: E402
from memsys.activations.mover import Mover  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402
from memsys.runtimes import override_runtime  # noqa: E402

SEEDS = range(40)
LAYERS = 6


@pytest.fixture
def simulate():
    """A function seed -> runtime that serves every tensor from then on."""

    def start(seed: int) -> object:
        runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
        override_runtime(runtime, _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write)))
        return runtime

    yield start
    override_runtime(None)


def build() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16)) for _ in range(LAYERS)
    ]
    return torch.nn.Sequential(*layers), torch.randn(32, 16)


def gradients(model: torch.nn.Module, data: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(data).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("place", [memsys.HOST, memsys.FILE], ids=["host", "file"])
def test_every_schedule_is_ordered_and_exact(simulate, place: memsys.Decision) -> None:
    model, data = build()
    wanted = gradients(model, data)
    for seed in SEEDS:
        runtime = simulate(seed)
        memsys.offload(model, policy=lambda _: place, min_bytes=1)
        for _ in range(2):
            assert all(map(torch.equal, gradients(model, data), wanted)), f"seed {seed}"
        assert memsys.stats(model).packed_count > LAYERS
        memsys.restore(model)
        runtime.drain()


def test_a_host_far_ahead_holds_few_sources(simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lane runs while the host issues a whole forward; the bound on held sources holds all the same."""
    bound_bytes = 20_000
    most = 0
    hold = Mover.hold

    def watch(mover: Mover, span: object) -> None:
        nonlocal most
        mover.window_bytes = bound_bytes
        hold(mover, span)
        most = max(most, mover._held_bytes)

    monkeypatch.setattr(Mover, "hold", watch)
    model, data = build()
    wanted = gradients(model, data)
    simulate(7)
    memsys.offload(model, policy=lambda _: memsys.HOST, min_bytes=1)
    found = gradients(model, data)
    out_bytes = memsys.stats(model).out_bytes
    memsys.restore(model)
    assert all(map(torch.equal, found, wanted))
    assert 0 < most <= bound_bytes < out_bytes


def test_a_source_dropped_without_its_edge_is_told(simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the source goes back to its allocator although its stream does not wait for the copy."""

    def drop_at_once(mover: Mover, span: object) -> None:
        mover._drop_source(span)

    monkeypatch.setattr(Mover, "hold", drop_at_once)
    told = 0
    for seed in range(5):
        model, data = build()
        simulate(seed)
        memsys.offload(model, policy=lambda _: memsys.HOST, min_bytes=1)
        with pytest.raises(memsys.OrderError):
            gradients(model, data)
        told += 1
        memsys.restore(model)
    assert told == 5


class Streams:
    """A simulation of two streams, of which the test chooses the current one."""

    def __init__(self, seed: int) -> None:
        self.runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
        self.backend = _tensor.SimulatedBackend(self.runtime, (_C.Use.read, _C.Use.write))
        override_runtime(self.runtime, self.backend)
        self.producer, self.other = self.runtime.create_stream("producer"), self.runtime.create_stream("other")
        self.backend.stream = self.producer


@pytest.fixture
def streams():
    yield Streams
    override_runtime(None)


def test_what_was_kept_leaves_after_the_stream_that_made_it(streams) -> None:
    """Kept by one stream, sent away for want of room from another: the copy waits for the first."""
    model, data = build()
    wanted = gradients(model, data)
    for seed in SEEDS:
        run = streams(seed)
        memsys.offload(model, policy=lambda saved: memsys.KEEP if saved.index else memsys.HOST, min_bytes=1)
        model.zero_grad()
        loss = model(data).square().mean()
        mover = session_of(model)._mover
        kept = [span for ref in mover.kept._spans if (span := ref()) is not None]
        for span in kept:  # what the operation did that made it
            run.backend.note_use(_tensor.address_of(span.source) + span.begin_bytes, span.bytes, True)
        run.backend.stream = run.other
        sent = 0
        while mover.kept.send_first(mover):
            sent += 1
        run.runtime.drain()
        run.backend.stream = run.producer
        loss.backward()
        assert sent == len(kept) > LAYERS, f"seed {seed}"
        assert all(map(torch.equal, (parameter.grad for parameter in model.parameters()), wanted)), f"seed {seed}"
        memsys.restore(model)
        run.runtime.drain()
