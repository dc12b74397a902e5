"""Where the swapped rows lie and how they travel: in few pieces, straight into their place, within the budget."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

from gradients import assert_idle, assert_same, gradients  # noqa: E402
from row_models import Block, Stack, divided, largest_error, loss_of, made, step  # noqa: E402

import memsys  # noqa: E402
from memsys import _C, FILE, HOST, ROWS, _tensor  # noqa: E402
from memsys.activations.decision import Place  # noqa: E402
from memsys.activations.mover import Mover  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402
from memsys.activations.rows import prefix  # noqa: E402
from memsys.activations.rows.prefix import RowPrefix  # noqa: E402
from memsys.activations.rows.rerun import Rerun  # noqa: E402
from memsys.runtimes import override_runtime  # noqa: E402

WIDTH, ROWS_COUNT = 64, 600
CLOSE = 1e-10


def long_input(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, ROWS_COUNT, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture
def plain():
    return made(lambda: Stack(Block(WIDTH), Block(WIDTH), Block(WIDTH)))


@pytest.fixture
def sent(monkeypatch) -> list[RowPrefix]:
    """What was divided."""
    found: list[RowPrefix] = []
    send = RowPrefix.send

    def watch(self, mover, span, tiers):
        found.append(self)
        return send(self, mover, span, tiers)

    monkeypatch.setattr(RowPrefix, "send", watch)
    return found


@pytest.mark.parametrize("batch", [1, 3])
def test_pieces_are_read_into_their_places_and_small_ones_are_gathered(plain, sent, batch, tmp_path, monkeypatch):
    wanted = step(plain, long_input(batch))
    model, policy = divided(plain, tmp_path, 0.4)
    step(model, long_input(batch))
    gathered = {}
    for least in (1, prefix._LEAST_PIECE_BYTES, 1 << 40):
        monkeypatch.setattr(prefix, "_LEAST_PIECE_BYTES", least)
        sent.clear()
        before = memsys.stats(model).out_bytes
        policy.asked.clear()
        assert largest_error(step(model, long_input(batch)), wanted) < CLOSE
        assert memsys.stats(model).out_bytes - before == policy.swapped_bytes(ROWS_COUNT)
        gathered[least] = {one._is_gathered for one in sent}
        for one in sent:
            outer = one.geometry.outer
            assert len(one._pieces) == (1 if one._is_gathered else outer)
    if batch == 1:
        assert list(gathered.values()) == [{False}] * 3
    else:
        assert gathered[1] == {False} and gathered[1 << 40] == {True}
        assert gathered[64 << 10] == {False, True}  # statistics are small, the rest is not
    sent.clear()
    del one
    assert_idle(model)


def test_no_row_is_handed_out_before_its_piece_has_landed(plain, tmp_path, monkeypatch):
    started, landed = [], []
    start, land, take = prefix._start_into, Mover.land, RowPrefix._take

    def watch_take(self, span, landing):
        assert all(one.arrival in landed for one in started if one.target is landing.target)
        assert (_tensor.address_of(landing.target) - self._phase) % 4096 == 0  # as a direct read wants it
        return take(self, span, landing)

    def watch_start(*args):
        started.append(start(*args))
        return started[-1]

    monkeypatch.setattr(prefix, "_start_into", watch_start)
    monkeypatch.setattr(Mover, "land", lambda self, *args: landed.append(args[0]) or land(self, *args))
    monkeypatch.setattr(RowPrefix, "_take", watch_take)
    model, _ = divided(plain, tmp_path, 0.4)
    for _ in range(2):
        loss = model(long_input(1)).square().sum()
        session_of(model).drain()
        loss.backward()
    assert len(started) > 20


def test_many_pieces_are_gathered(plain, sent, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix, "_MOST_PIECES", 2)
    monkeypatch.setattr(prefix, "_LEAST_PIECE_BYTES", 1)
    model, _ = divided(plain, tmp_path, 0.4)
    for _ in range(2):
        step(model, long_input(3))
    assert {one._is_gathered for one in sent} == {True}


def test_at_alpha_zero_nothing_of_it_moves_and_memory_goes_at_once(plain, sent, tmp_path):
    model, _ = divided(plain, tmp_path, 0.0)
    for _ in range(2):
        step(model, long_input(2))
    assert sent and all(one._pieces == [] and not one.is_away for one in sent)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
def test_a_device_budget_holds(plain, tmp_path, alpha):
    x = long_input(2)
    wanted = step(plain, x)
    budget = 16 << 20
    model, policy = divided(plain, tmp_path, alpha, device_budget=budget)
    step(model, x)
    session = session_of(model)
    session._store.device_budget.reset_peak()
    for _ in range(2):
        assert largest_error(step(model, x), wanted) < CLOSE
    assert 0 < memsys.stats(model).peak_device_bytes <= budget
    policy.asked.clear()
    loss = model(x).square().sum()
    saved_bytes = sum(saved.bytes for saved in policy.asked)
    assert saved_bytes > 1.5 * budget
    loss.backward()
    del loss
    assert_idle(model)
    assert memsys.stats(model).fallback_count == 0
    session._store.trim()
    assert session._store.device_budget.used_bytes == 0


def test_what_the_budget_can_not_hold_says_so(plain, tmp_path):
    """A segment comes back together."""
    model, _ = divided(plain, tmp_path, 0.5, device_budget=3 << 20)
    step_input = long_input(2)
    loss = model(step_input).square().sum()
    loss.backward()
    loss = model(step_input).square().sum()
    with pytest.raises(memsys.BudgetError, match="device_budget"):
        loss.backward()
    del loss
    assert_idle(model)


def test_rows_that_leave_are_counted_with_the_rows_that_nobody_wants(plain, tmp_path, monkeypatch):
    reserved: list[int] = []
    reserve = Mover.reserve
    monkeypatch.setattr(Mover, "reserve", lambda self, bytes_: reserved.append(bytes_) or reserve(self, bytes_))
    model, policy = divided(plain, tmp_path, 0.25)
    step(model, long_input(1))
    policy.asked.clear()
    step(model, long_input(1))
    assert sum(reserved) == sum(saved.bytes * 3 // 4 for saved in policy.divided)
    # Without room for them, the rows that are wanted are copied and the source goes at once.
    monkeypatch.setattr(Mover, "reserve", lambda self, bytes_: False)
    assert largest_error(step(model, long_input(1)), step(plain, long_input(1))) < CLOSE
    assert_idle(model)


def test_prefetching_brings_rows_back_ahead(plain, tmp_path, monkeypatch):
    prefetched = []
    prefetch = Mover.prefetch

    def watch(self, span):
        result = prefetch(self, span)
        if span.rows is not None and span.is_prefetched:
            prefetched.append(span.index)
        return result

    def counted_once(self):
        assert not any(span.is_prefetched for span in self._targets)  # wanted now, not ahead of its time
        run(self)

    run = Rerun.run
    monkeypatch.setattr(Rerun, "run", counted_once)
    monkeypatch.setattr(Mover, "prefetch", watch)
    model, _ = divided(plain, tmp_path, 0.5)
    x = long_input(1)
    for _ in range(3):
        prefetched.clear()
        loss = model(x).square().sum()
        session_of(model).drain()
        loss.backward()
    assert len(set(prefetched)) > 8
    mover = session_of(model)._mover
    assert mover.ahead._used_bytes == 0 and not mover.ahead.give_up()


@pytest.mark.parametrize("away", [Place.HOST, Place.FILE])
def test_rows_go_where_the_policy_says(plain, tmp_path, away):
    def policy(saved):
        return FILE if saved.row_segment is None else ROWS(0.5, saved.row_segment, away)

    x = long_input(1)
    wanted = step(plain, x)
    model = memsys.offload(plain, policy=policy, min_bytes=1, spill_dir=str(tmp_path))
    for _ in range(2):
        assert largest_error(step(model, x), wanted) < CLOSE
    assert (memsys.stats(model).peak_host_bytes > 0) is (away is Place.HOST)
    assert_idle(model)


def test_rows_that_could_not_leave_are_still_there(plain, tmp_path):
    """They stay with the rest of their source, and come from it."""
    runtime = _C.Runtime(_C.DeviceKind.host, io=_C.IoEngineChoice.threads, faults=_C.FaultSeam.faulty)
    override_runtime(runtime, _tensor.CpuBackend())
    try:
        wanted = step(plain, long_input(2))
        model, _ = divided(plain, tmp_path, 0.4)
        step(model, long_input(2))
        model.zero_grad()
        x = long_input(2).requires_grad_()
        runtime.arm_io(_C.IoFault.no_space, 5, _C.FaultSpan.persistent)
        loss = loss_of(model, x)
        session_of(model).drain()
        runtime.arm_io(_C.IoFault.none, 0)
        loss.backward()
        assert largest_error([loss.detach(), *gradients(model), x.grad], wanted) < CLOSE
        del loss
        assert memsys.stats(model).fallback_count > 0
        assert_idle(model)
    finally:
        override_runtime(None)


@pytest.mark.parametrize("place", [HOST, FILE], ids=["host", "file"])
@pytest.mark.parametrize(
    ("alpha", "batch"), [(0.0, 2), (0.4, 1), (0.4, 2)]
)  # a batch of 1 is one piece, 2 are gathered
def test_every_schedule_of_a_simulated_accelerator_is_ordered(place, alpha, batch):
    """A missing edge between a piece's transfer, the rows computed beside it and their readers is an error here."""
    plain = made(lambda: Stack(Block(), Block(), Block()))
    x = torch.randn(batch, 12, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = step(plain, x)
    try:
        for seed in range(12):
            runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
            override_runtime(runtime, _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write)))
            away = place.place

            def policy(saved, away=away):
                return place if saved.row_segment is None else ROWS(alpha, saved.row_segment, away)

            memsys.offload(plain, policy=policy, min_bytes=1)
            for _ in range(3):
                assert largest_error(step(plain, x), wanted) < CLOSE, f"seed {seed}"
            assert memsys.stats(plain).remade_bytes > 0
            memsys.restore(plain)
            runtime.drain()
    finally:
        override_runtime(None)
    assert_same(step(plain, x), wanted)
