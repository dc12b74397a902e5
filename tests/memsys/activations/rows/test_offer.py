"""What a plan is made from: each call's segment, what a row of each tensor weighs, and how long a run takes."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

from row_models import LAYERS, MODELS, Block, divided, inputs, made, step  # noqa: E402

from memsys.activations.offload import session_of  # noqa: E402
from memsys.activations.rows import profile as profiles  # noqa: E402
from memsys.activations.rows.profile import profile, remake_us  # noqa: E402

ROWS_COUNT = 12


@pytest.mark.parametrize("name", MODELS)
def test_a_step_tells_its_segments(name, tmp_path):
    model, policy = divided(made(MODELS[name]), tmp_path, 1.0)
    rows = session_of(model).rows
    rows.is_wanted = rows.is_measured = True  # as a recorder asks
    step(model, inputs(2, ROWS_COUNT))
    facts = rows.facts
    assert [one.id for one in facts] == list(range(LAYERS))
    assert all(one.row_count == ROWS_COUNT and one.remake_us > 0 and one.declined is None for one in facts)
    offered = [saved for saved in policy.asked if saved.row_segment is not None]
    assert {saved.row_segment.id for saved in offered} == set(range(LAYERS))
    for saved in offered:
        segment = saved.row_segment
        assert segment.is_proven and segment.row_count == ROWS_COUNT
        assert segment.row_bytes * ROWS_COUNT == saved.bytes
        assert segment.remake_us == facts[segment.id].remake_us
        assert not saved.is_attention_output
    by_index = {saved.index: saved for saved in policy.asked}
    for one in facts:
        read = [by_index[index] for index in one.inputs]
        assert any(saved.is_attention_output for saved in read)
        assert all(saved.row_segment is None for saved in read)


def test_until_rows_are_wanted_blocks_are_not_tried(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(profiles, "_judged", lambda *args: tried.append(args))
    model, policy = divided(made(MODELS["hand-written"]), tmp_path)
    policy.__class__ = type("Whole", (policy.__class__,), {"__call__": lambda self, saved: _asked(self, saved)})
    for _ in range(2):
        step(model, inputs())
    assert tried == []
    assert {saved.row_segment.is_proven for saved in policy.asked if saved.row_segment is not None} == {False}


def _asked(policy, saved):
    from memsys import FILE

    policy.asked.append(saved)
    return FILE


def test_a_run_is_timed_once_for_each_shape_and_without_attention(monkeypatch):
    monkeypatch.setattr(profiles, "_times", {})
    block, x = made(Block), inputs(2, 40)
    verdict = profile(block, (x,), {})
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def count(*args, **kwargs):
        calls.append(args[0].shape)
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    first = remake_us(block, (x,), {}, verdict)
    assert first > 0 and remake_us(block, (x,), {}, verdict) == first
    remake_us(block, (inputs(2, 20),), {}, verdict)
    assert [shape[2] for shape in calls] == [40, 20]
    assert all(parameter.grad is None for parameter in block.parameters())
