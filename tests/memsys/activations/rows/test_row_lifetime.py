"""Graphs of divided tensors in every shape a training script gives them, and what changes before backward."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from built import needs_memsys
from torch.utils.checkpoint import checkpoint

needs_memsys()

from gradients import assert_idle, gradients  # noqa: E402
from row_models import LAYERS, MODELS, Block, Stack, divided, inputs, largest_error, loss_of, made, step  # noqa: E402

import memsys  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402
from memsys.activations.rows import call  # noqa: E402
from memsys.activations.rows.rerun import Rerun  # noqa: E402
from memsys.activations.rows.segment import Segment  # noqa: E402

CLOSE = 1e-10


def both(model, plain, scenario) -> None:
    """The scenario gives the same with and without, and rows were computed again."""
    before = memsys.stats(model).remade_bytes
    results = []
    for one in (model, plain):
        one.zero_grad()
        results.append([result for result in scenario(one) if result is not None])
    assert largest_error(*results) < CLOSE
    assert memsys.stats(model).remade_bytes > before


def test_two_forwards_then_one_backward(model, plain):
    def scenario(one):
        (loss_of(one, inputs(seed=1)) + loss_of(one, inputs(seed=2))).backward()
        return gradients(one)

    both(model, plain, scenario)


def test_two_forwards_then_backward_in_either_order(model, plain):
    def scenario(one):
        first, second = loss_of(one, inputs(seed=1)), loss_of(one, inputs(rows=14, seed=2))
        first.backward()
        yield from (gradient.clone() for gradient in gradients(one))
        second.backward()
        yield from gradients(one)

    both(model, plain, scenario)


@pytest.mark.parametrize("name", ["hand-written", "llama"])
def test_backward_twice_over_a_kept_graph_runs_again_and_keeps_nothing(name, tmp_path, monkeypatch):
    plain = made(MODELS[name])  # of llama, several operations read one tensor, one after another
    model, _ = divided(plain, tmp_path, 0.3)
    step(model, inputs())
    runs = []
    run = Rerun.run
    monkeypatch.setattr(Rerun, "run", lambda self: runs.append(self._segment) or run(self))

    def scenario(one):
        loss = loss_of(one, inputs())
        for _ in range(3):
            loss.backward(retain_graph=True)
        yield from gradients(one)
        if one is model:
            # Once a segment and backward, whatever the number of tensors and of reads of each.
            assert len(runs) == 3 * LAYERS and len(set(runs)) == LAYERS
            spans = [write.span() for segment in set(runs) for write in segment.writes.values()]
            assert all(span.loaded is None and span.landing is None for span in spans)

    both(model, plain, scenario)


def test_another_stream_gets_rows_of_its_own(model, monkeypatch):
    """It has no edge to what this one wrote."""
    loss = loss_of(model, inputs())
    node = next(node for node in _nodes(loss) if node.name() == "GeluBackward0")
    mover = session_of(model)._mover
    first = node._saved_self
    assert node._saved_self.data_ptr() == first.data_ptr()
    monkeypatch.setattr(mover.backend, "current_stream", lambda: 1, raising=False)
    second = node._saved_self
    assert second.data_ptr() != first.data_ptr() and torch.equal(first, second)


def test_a_part_of_the_graph(model, plain):
    def scenario(one):
        x = inputs().requires_grad_()
        return torch.autograd.grad(loss_of(one, x), [x, one.layers[2].up.weight])

    both(model, plain, scenario)


def test_a_forward_without_backward_frees_all_without_the_collector(model):
    gc.collect()
    gc.disable()
    try:
        loss = loss_of(model, inputs())
        segments = [weakref.ref(found) for found in _segments(loss)]
        assert len(segments) == 3 and memsys.stats(model).spill_used_bytes >= 0
        del loss
        assert [found() for found in segments] == [None] * 3
        loss_of(model, inputs()).backward()
    finally:
        gc.enable()


def _nodes(loss) -> list:
    seen, waiting = {}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = True
            waiting.extend(following for following, _ in node.next_functions)
    return list(seen)


def _segments(loss) -> set[Segment]:
    """The segments that the handles of a graph hold."""
    found = set()
    for node in _nodes(loss):
        for name in dir(node):
            data = getattr(getattr(node, name, None), "data", None) if name.startswith("_raw_saved_") else None
            rows = getattr(getattr(data, "span", None), "rows", None)
            if rows is not None:
                found.add(rows.segment)
    return found


class Failing(Exception):
    pass


class Fragile(Block):
    """Fails while `fails` is set."""

    fails = False

    def between(self, h):
        if Fragile.fails:
            raise Failing
        return super().between(h)


def test_an_exception_in_a_rerun_leaves_nothing_and_backward_may_be_tried_again(tmp_path):
    plain = made(lambda: Stack(Fragile(), Fragile()))
    wanted = step(plain, inputs())
    model, _ = divided(plain, tmp_path, 0.3)
    step(model, inputs())
    x = inputs().requires_grad_()
    model.zero_grad()
    loss = loss_of(model, x)
    Fragile.fails = True
    try:
        with pytest.raises(Failing):
            loss.backward(retain_graph=True)
    finally:
        Fragile.fails = False
    for segment in _segments(loss):
        spans = {write.span() for write in segment.writes.values()}
        assert all(span.loaded is None and not getattr(span.landing, "is_remade", False) for span in spans)
    model.zero_grad()
    x.grad = None
    loss.backward()
    assert largest_error([loss.detach(), *gradients(model), x.grad], wanted) < CLOSE
    del loss, segment, spans
    assert_idle(model)


def test_an_exception_in_forward(tmp_path):
    plain = made(lambda: Stack(Fragile(), Fragile()))
    model, _ = divided(plain, tmp_path, 0.3)
    step(model, inputs())
    Fragile.fails = True
    with pytest.raises(Failing):
        model(inputs())
    Fragile.fails = False
    assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert_idle(model)


def test_threads(model, plain):
    wanted = {}
    for seed in range(4):
        x = inputs(seed=seed).requires_grad_()
        wanted[seed] = torch.autograd.grad(loss_of(plain, x), x)
    start = threading.Barrier(4)

    def work(seed):
        start.wait()
        for _ in range(3):
            x = inputs(seed=seed).requires_grad_()
            assert largest_error(torch.autograd.grad(loss_of(model, x), x), wanted[seed]) < CLOSE

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_two_backwards_of_one_graph_at_once(model, plain):
    x = inputs().requires_grad_()
    (wanted,) = torch.autograd.grad(loss_of(plain, x), x)
    loss = loss_of(model, x)
    start = threading.Barrier(3)

    def work(_):
        start.wait()
        return torch.autograd.grad(loss, x, retain_graph=True)

    with ThreadPoolExecutor(3) as pool:
        for (found,) in pool.map(work, range(3)):
            assert largest_error([found], [wanted]) < CLOSE


def test_a_checkpoint_around_a_block_goes_on_working(plain, tmp_path, monkeypatch):
    class Checked(Stack):
        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    checked = made(lambda: Checked(Block(), Block(), Block()))
    model, policy = divided(checked, tmp_path)
    tried = []
    monkeypatch.setattr(call, "profile", lambda *args: tried.append(args))
    session_of(model).rows.want()
    for _ in range(2):
        assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert policy.divided == [] and tried == [] and memsys.stats(model).remade_bytes == 0


def test_offload_inside_offload(plain, tmp_path):
    model, policy = divided(plain, tmp_path)
    memsys.offload(model.layers[1], policy="all", min_bytes=1, spill_dir=str(tmp_path))
    for _ in range(2):
        assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    declined = [facts.declined for facts in session_of(model).rows.facts]
    assert declined == [None, "a part of it is offloaded by itself", None] and len(policy.divided) > 8
    with memsys.offload_activations(policy="all", min_bytes=1, spill_dir=str(tmp_path)):
        assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    memsys.restore(model.layers[1])
    memsys.restore(model)
    assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert all(len(layer._forward_pre_hooks) == 0 for layer in model.layers)


def test_generators_stand_where_they_stood(model):
    x, state = inputs(), torch.get_rng_state()
    loss_of(model, x).backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_deep_copy_and_lengths_that_vary(model, plain):
    import copy

    for rows in (7, 12, 33):
        assert largest_error(step(model, inputs(rows=rows)), step(plain, inputs(rows=rows))) < CLOSE
    twin = copy.deepcopy(model)
    assert largest_error(step(twin, inputs()), step(plain, inputs())) < CLOSE


def test_a_result_that_the_next_block_reads_is_saved_whole(tmp_path):
    """Its segment would otherwise be computed from within the next one's, and so on down the stack."""

    class Ending(Block):
        def forward(self, x):
            return torch.tanh(super().forward(x))

    plain = made(lambda: Stack(Ending(), Ending(), Ending()))
    model, policy = divided(plain, tmp_path, 0.0)
    step(model, inputs())
    policy.asked.clear()
    assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert [saved.row_segment for saved in policy.asked if saved.producer == "TanhBackward0"] == [None] * 3
    assert len(policy.divided) > 20


def test_bytes_that_no_rerun_makes_move_by_themselves(tmp_path):
    """A part of a divided tensor that its block does not save, and that is saved outside of the block."""
    kept = []

    class Leaking(Block):
        def between(self, h):
            one, other = h.chunk(2, -1)
            kept.append(other)
            return torch.cat([F.gelu(one), other], -1)

    class Reading(Stack):
        def forward(self, x):
            kept.clear()
            y = super().forward(x)
            return y + (kept[-1] * kept[-1])[..., :32]

    plain = made(lambda: Reading(Leaking(), Leaking()))
    model, policy = divided(plain, tmp_path, 0.3)
    for _ in range(2):
        assert largest_error(step(model, inputs()), step(plain, inputs())) < CLOSE
    assert policy.divided


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, tmp_path):
    plain = made(lambda: Stack(Block(), Block()), torch.float32)
    x = inputs(dtype=torch.float32, rows=24)

    def run(one, outside):
        one.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = one(x).float().square().mean()
            if not outside:
                loss.backward()
        if outside:
            loss.backward()
        return [loss.detach(), *gradients(one)]

    model, policy = divided(plain, tmp_path, 0.4)
    run(model, True)
    for outside in (True, False):
        assert largest_error(run(model, outside), run(plain, outside)) < 0.03
    assert any(saved.dtype == dtype for saved in policy.divided)
    assert memsys.stats(model).remade_bytes > 0
    policy.alpha = 1.0
    assert largest_error(run(model, True), run(plain, True)) == 0
