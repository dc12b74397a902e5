"""The rule of "auto": what it keeps of a forward, by a budget's room or by a share, and never beyond its limit."""

from __future__ import annotations

import pytest
import torch

from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE, SavedTensor
from memsys.activations.policy import KeepLimit, make_policy
from memsys.activations.recipes import CheapSegment
from memsys.errors import InputError

MIB = 1 << 20


def saved(index: int, bytes_: int) -> SavedTensor:
    return SavedTensor(index, bytes_, torch.float32, torch.Size([bytes_ // 4]), "", False, False)


def run_forward(policy, sizes: list[int], kept: list[int]) -> list[bool]:
    """Which spans of one forward stay; `kept` counts their bytes, and is empty again after backward."""
    stays = []
    for index, bytes_ in enumerate(sizes):
        stays.append(policy(saved(index, bytes_)) is KEEP)
        if stays[-1]:
            kept.append(bytes_)
    policy.learn(sizes)
    kept.clear()
    return stays


@pytest.mark.parametrize(
    ("budget_bytes", "share", "buffer_bytes", "stay_count"),
    [
        (0, 0.5, 0, 0),
        (3 * MIB, 0.0, 0, 3),
        (5 * MIB, 0.9, 2 * MIB, 3),
        (1 * MIB, 0.0, 2 * MIB, 0),
        (None, 0.25, 0, 2),
        (None, 0.5, 2 * MIB, 3),
        (None, 0.5, 6 * MIB, 0),
        (100 * MIB, 0.0, 0, 10),
    ],
)
def test_auto_keeps_the_last_spans_from_the_second_forward_on(budget_bytes, share, buffer_bytes, stay_count):
    kept: list[int] = []
    policy = make_policy("auto", "cpu", KeepLimit(budget_bytes, share, buffer_bytes, lambda: sum(kept)))
    assert run_forward(policy, [MIB] * 10, kept) == [False] * 10
    assert run_forward(policy, [MIB] * 10, kept) == [False] * (10 - stay_count) + [True] * stay_count


def test_a_longer_forward_than_the_last_stays_within_the_limit():
    kept: list[int] = []
    policy = make_policy("auto", "cpu", KeepLimit(3 * MIB, now=lambda: sum(kept)))
    run_forward(policy, [MIB] * 4, kept)
    stays = run_forward(policy, [MIB] * 40, kept)
    assert sum(stays) == 3
    assert stays[1:4] == [True] * 3


def test_what_other_forwards_keep_counts():
    policy = make_policy("auto", "cpu", KeepLimit(3 * MIB, now=lambda: 2 * MIB))
    policy.learn([MIB] * 3)
    assert policy(saved(0, MIB)) is KEEP
    assert policy(saved(1, 2 * MIB)) is FILE


def cheap(index: int, bytes_: int, needed_bytes: int) -> SavedTensor:
    segment = CheapSegment("GeluBackward0", needed_bytes, True)
    return SavedTensor(index, bytes_, torch.float32, torch.Size([bytes_ // 4]), "", False, False, segment)


def test_without_a_budget_whatever_is_cheap_is_made_again_and_the_rest_kept():
    kept: list[int] = []
    policy = make_policy("auto", "cpu", KeepLimit(None, 0.5, now=lambda: sum(kept)))
    sizes = [8 * MIB] * 8
    policy.learn(sizes, remade={1, 3, 5, 7})
    places = [policy(cheap(i, 8 * MIB, 16 * MIB) if i % 2 else saved(i, 8 * MIB)).place.value for i in range(8)]
    assert places == ["keep", "recompute"] * 4


def test_within_a_budget_what_is_cheap_waits_until_kept_bytes_are_gone():
    policy = make_policy("auto", "cpu", KeepLimit(64 * MIB, buffer_bytes=32 * MIB))
    policy.learn([8 * MIB] * 8)
    late, early = cheap(6, 8 * MIB, 16 * MIB), cheap(1, 8 * MIB, 16 * MIB)
    assert policy(late) is KEEP
    assert policy(early) == RECOMPUTE(early.segment)
    assert policy(cheap(1, 8 * MIB, 17 * MIB)) is FILE  # no room for what it is made from
    assert policy(cheap(1, MIB, 2 * MIB)) is FILE  # not worth the calls


def test_names_give_policies_and_others_are_refused():
    assert make_policy("all", "cpu")(saved(0, 4)) is FILE
    assert make_policy("all", "cuda")(saved(0, 4)) is HOST
    assert make_policy("inputs", "cpu")(saved(0, 4)) is KEEP
    with pytest.raises(InputError, match="sometimes"):
        make_policy("sometimes", "cpu")
