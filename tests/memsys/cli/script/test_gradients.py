"""The record of a run's gradients, and two of them side by side: what differs is named, down to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from memsys.cli.script.compare import Comparison, Names, compare, first_byte
from memsys.cli.script.gradients import Enough, GradientRecord, Place, digest_of, gradient_parts, read_kind
from memsys.cli.script.models import Models


class Recorded:
    """A record of a model that takes steps with the gradients given to it."""

    def __init__(self, folder: Path, name: str, count: int = 3, optimizer=torch.optim.SGD, **options) -> None:
        self.path, self.kept = folder / f"{name}.jsonl", folder / f"{name}.bytes"
        self.model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(count)))
        self.models = Models()
        self.models._meet(self.model)
        self.optimizer = optimizer(self.model.parameters(), lr=0.1)
        self.record = GradientRecord(str(self.path), self.models, kept_path=str(self.kept), **options)

    def step(self, *values: float | None) -> Recorded:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.grad = None if value is None else torch.full((4, 4), float(value))
        self.record.take(self.optimizer)
        return self

    @property
    def names(self) -> Names:
        return Names(self.path, self.models.class_names)


def compared(one: Recorded, other: Recorded) -> Comparison:
    return compare(one.path, other.path, one.names, other.names)


def test_equal_runs_are_counted(tmp_path):
    runs = [Recorded(tmp_path, name).step(1, 2, None).step(3, 4, None) for name in "ab"]
    found = compared(*runs)
    assert found.difference is None
    assert (found.step_count, found.parameter_count, found.gradient_bytes) == (2, 2, 4 * 64)


def test_the_first_different_byte_is_named(tmp_path):
    plain = Recorded(tmp_path, "plain").step(1, 1, 1).step(2, 2, 2).step(3, 3, 3)
    moved = Recorded(tmp_path, "moved", expected=str(plain.path)).step(1, 1, 1)
    for parameter in moved.model.parameters():
        parameter.grad = torch.full((4, 4), 2.0)
    for at in (5, 9):
        list(moved.model.parameters())[1].grad.view(torch.int32).view(-1)[at] ^= 0x10000
    moved.record.take(moved.optimizer)
    moved.step(7, 7, 7)
    difference = compared(plain, moved).difference
    assert (difference.what, difference.parameter, difference.place) == ("gradient", "1.weight", Place(1, 1))

    again = Recorded(tmp_path, "again", keep=difference.place).step(1, 1, 1).step(2, 2, 2)
    byte = first_byte(again.kept, moved.kept)
    assert (byte["offset"], byte["differing_count"]) == (5 * 4 + 2, 2)
    assert byte["first"].startswith("00 40") and byte["second"].startswith("01 40")
    assert len(read_kind(moved.path, "kept")) == 1, "the first difference alone is kept"


def test_a_missing_gradient_is_a_difference(tmp_path):
    difference = compared(Recorded(tmp_path, "a").step(1, 1, 1), Recorded(tmp_path, "b").step(1, None, 1)).difference
    assert difference.text == "step 0, 1.weight: no gradient in the second run"


def test_another_count_of_steps(tmp_path):
    difference = compared(
        Recorded(tmp_path, "a").step(1, 1, 1), Recorded(tmp_path, "b").step(1, 1, 1).step(1, 1, 1)
    ).difference
    assert (difference.what, difference.text) == ("step_count", "1 optimizer steps against 2")


def test_other_parameters_or_optimizers(tmp_path):
    base = Recorded(tmp_path, "a").step(1, 1, 1)
    fewer = compared(base, Recorded(tmp_path, "b", count=2).step(1, 1)).difference
    assert fewer.what == "parameters" and "2.weight in one run alone" in fewer.text
    assert "Adam" in compared(base, Recorded(tmp_path, "c", optimizer=torch.optim.Adam).step(1, 1, 1)).difference.text


def test_several_models_are_told_apart(tmp_path):
    run = Recorded(tmp_path, "a", count=1)
    other, stray = nn.Linear(4, 4, bias=False), nn.Parameter(torch.zeros(4))
    twin = nn.Sequential(nn.Linear(4, 4, bias=False))
    for model in (other, twin):
        run.models._meet(model)
    run.optimizer = torch.optim.SGD([*run.model.parameters(), *other.parameters(), *twin.parameters(), stray], lr=1)
    run.record.take(run.optimizer)
    assert [run.names.name(number) for number in range(4)] == [
        "Sequential 1: 0.weight", "Linear: weight", "Sequential 2: 0.weight", "parameter 3 of optimizer 0",
    ]  # fmt: skip


def test_a_limit_ends_the_script(tmp_path):
    run = Recorded(tmp_path, "a", step_limit=2).step(1, 1, 1)
    with pytest.raises(Enough):
        run.step(1, 1, 1)


@pytest.mark.parametrize("call", [lambda optimizer, closure: optimizer.step(closure),
                                  lambda optimizer, closure: optimizer.step(closure=closure)])  # fmt: skip
def test_a_closure_is_a_step_at_each_call(call, tmp_path):
    run = Recorded(tmp_path, "a", count=1)
    optimizer = torch.optim.LBFGS(run.model.parameters(), max_iter=3)
    optimizer.register_step_pre_hook(run.record._before_step)

    def closure():
        optimizer.zero_grad()
        loss = run.model(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss

    call(optimizer, closure)
    steps = read_kind(run.path, "step")
    assert len(steps) > 1 and all(step["gradients"][0][1] is not None for step in steps)


def test_every_kind_of_gradient_has_bytes():
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], torch.ones(3, 4), (4, 4), check_invariants=True)
    indices, values = gradient_parts(sparse)
    assert indices.tolist() == [[0, 2]] and values[0, 0] == 2
    assert digest_of(gradient_parts(None)) is None
    kinds = [torch.zeros(()), torch.zeros(0, 3), torch.zeros(4, dtype=torch.bfloat16), torch.zeros(2, 3).t(),
             torch.zeros(2, dtype=torch.complex64).conj(), torch.zeros(3, 2)]  # fmt: skip
    digests = [digest_of(gradient_parts(kind)) for kind in kinds]
    assert digests[3] == digests[5] and len(set(digests)) == 5
    assert digest_of(gradient_parts(torch.zeros(2))) != digest_of(gradient_parts(-torch.zeros(2)))
