"""Which plan a forward follows, and for how long: the policy alone, on sizes made up for it."""

from __future__ import annotations

import pytest
import torch

from memsys.activations.decision import FILE, HOST, KEEP, SavedTensor
from memsys.activations.planned import PlannedForward
from memsys.planning.plan import Plan
from memsys.planning.swap_plan import Budgets, Choice, Hardware, Link, SwapPlan
from memsys.planning.trace import SpanRecord, StepTrace

HARDWARE = Hardware(Link(1e9, 1e9))
K, F = Choice.KEEP, Choice.FILE
OTHERWISE = HOST  # stands for what the rule says


def hand_made(sizes, choices, budget=None):
    spans = tuple(
        SpanRecord(index, bytes_, "float32", (bytes_ // 4,), "", 0, index, 100.0 - index, 100.0 - index)
        for index, bytes_ in enumerate(sizes)
    )
    trace = StepTrace("cpu", 50.0, 50.0, spans)
    return Plan(trace, SwapPlan(tuple(choices)), Budgets(budget), HARDWARE, 1)


def saved(index, bytes_):
    return SavedTensor(index, bytes_, torch.float32, torch.Size([bytes_ // 4]), "", False, False)


def decisions(policy, sizes):
    return [policy(saved(index, bytes_)) for index, bytes_ in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([4, 8, 12], [KEEP, FILE, KEEP]),
        ([4, 8, 16, 20], [KEEP, FILE, FILE, KEEP]),  # another plan that begins so
        ([4, 12, 12], [KEEP, OTHERWISE, OTHERWISE]),  # does not come back to the plan
        ([8, 8, 12], [OTHERWISE, OTHERWISE, OTHERWISE]),
        ([4, 8, 12, 16], [KEEP, FILE, KEEP, OTHERWISE]),
        ([4, 8], [KEEP, FILE]),
    ],
    ids=str,
)
def test_a_forward_follows_the_plan_that_it_has_not_departed_from(sizes, wanted):
    plans = [hand_made([4, 8, 12], [K, F, K]), hand_made([4, 8, 16, 20], [F, F, F, K])]
    policy = PlannedForward(plans, lambda saved: OTHERWISE, FILE, lambda: 0)
    assert decisions(policy, sizes) == wanted
    followed = {(4, 8, 12): plans[0], (4, 8, 16, 20): plans[1]}
    assert policy.plan is followed.get(tuple(sizes))


def test_what_other_forwards_keep_counts_towards_a_plan():
    plan = hand_made([4, 8, 12], [K, K, K], budget=24)
    assert decisions(PlannedForward([plan], None, FILE, lambda: 14), [4, 8, 12]) == [KEEP, KEEP, FILE]


def test_what_cannot_be_made_again_goes_away():
    plan = hand_made([4], [Choice.RECOMPUTE])
    assert decisions(PlannedForward([plan], None, FILE, lambda: 0), [4]) == [FILE]
