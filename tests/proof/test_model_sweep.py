"""Bit-exactness over the architectures people train: tiny random causal language models of transformers, with their
layers as they are, checkpointed, selectively checkpointed and compiled one by one, in two precisions.

Each architecture saves tensors in its own manner (views, in-place operations, casts, sparse routing, scans), which no
model written for a test would. What the same run without memsys is compared with is treated in the same way.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import time
import warnings
from pathlib import Path

import pytest
import torch
from built import needs_memsys

needs_memsys()
pytest.importorskip("transformers")

import proof  # noqa: E402
from architecture_modes import MODES, NoLayers, compiled  # noqa: E402
from architectures import Unbuildable, architectures, one_step, tiny_model  # noqa: E402
from gradients import DROPPED, TIERS, assert_idle, assert_same, bits_equal, offloaded  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import memsys  # noqa: E402

pytestmark = pytest.mark.proof

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WANTED_COUNT = 130
CI_SECONDS = 50
INDUCTOR_KINDS = ("gpt2", "llama", "qwen3", "gemma2", "mixtral")


class Unfit(Exception):
    """The architecture says nothing about memsys; the message says why."""


def copies(results: list[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.clone() for tensor in results]


def reference(model: nn.Module) -> list[Tensor | None]:
    """One step without memsys, if two of them agree."""
    try:
        wanted = copies(one_step(model))
        again = one_step(model)
    except Exception as error:
        raise Unfit(f"fails without memsys: {type(error).__name__}: {str(error).splitlines()[:1]}") from error
    pairs = zip(wanted, again, strict=True)
    if not all((a is None) == (b is None) and (a is None or bits_equal(a, b)) for a, b in pairs):
        raise Unfit("is not deterministic by itself")
    return wanted


def check(kind: str, mode: str, dtype: torch.dtype, spill_dir: Path) -> None:
    """Compares one architecture with and without memsys. Raises Unfit, or what differs."""
    try:
        model = tiny_model(kind).to(dtype)
        treat = compiled("inductor") if mode == "inductor" else MODES[mode]
        treat(model)
    except (Unbuildable, NoLayers) as reason:
        raise Unfit(str(reason).splitlines()[0]) from reason
    wanted = reference(model)
    policies = (*TIERS.values(), DROPPED) if mode == "plain" else (TIERS["file"],)
    for policy in policies:
        offloaded(model, spill_dir, policy)
        for _ in range(2):  # the first step learns the order, and proves what the second drops
            assert_same(one_step(model), wanted)
        assert memsys.stats(model).packed_count > 0
        assert_idle(model)
        memsys.restore(model)


class Sweep:
    """What ran, what could not and why, and what differed."""

    def __init__(self, spill_dir: Path) -> None:
        self._spill_dir = spill_dir
        self.ran: list[str] = []
        self.left_out: dict[str, str] = {}
        self.differing: dict[str, str] = {}
        self._began = time.perf_counter()

    def take(self, kind: str, mode: str, dtype: str) -> None:
        name = f"{kind} {mode} {dtype}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the models' own: deprecations, missing kernels
            try:
                check(kind, mode, DTYPES[dtype], self._spill_dir)
            except Unfit as reason:
                self.left_out[name] = str(reason)
            except Exception as error:
                self.differing[name] = f"{type(error).__name__}: {error}"
            else:
                self.ran.append(name)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def tell(self) -> None:
        print(f"{len(self.ran)} ran: {', '.join(self.ran)}")
        for name, reason in (self.left_out | self.differing).items():
            print(f"{name}: {reason}")


@pytest.fixture
def sweep(tmp_path):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield Sweep(tmp_path)
    torch.compiler.reset()


def rotating(names: list[str], day: int) -> list[str]:
    """All of them, beginning elsewhere each day, neighbours far apart in the alphabet."""
    spread = [names[(place * 61) % len(names)] for place in range(len(names))] if len(names) % 61 else names
    begin = day * 8 % len(names)
    return spread[begin:] + spread[:begin]


def test_a_days_sample(sweep):
    """As many as a minute allows, each in the mode and precision whose turn it is."""
    day = datetime.date.today().timetuple().tm_yday
    turns = itertools.cycle(itertools.product(MODES, DTYPES))
    for kind, (mode, dtype) in zip(rotating(architectures(), day), turns, strict=False):
        sweep.take(kind, mode, dtype)
        if sweep.seconds > CI_SECONDS and len(sweep.ran) >= len(MODES):
            break
    sweep.tell()
    assert sweep.differing == {}


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_every_architecture(mode, dtype, sweep):
    for kind in architectures():
        sweep.take(kind, mode, dtype)
    finish(sweep, mode, dtype, WANTED_COUNT)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_compiled_for_good(dtype, sweep):
    for kind in INDUCTOR_KINDS:
        sweep.take(kind, "inductor", dtype)
    finish(sweep, "inductor", dtype, len(INDUCTOR_KINDS))


def finish(sweep: Sweep, mode: str, dtype: str, wanted_count: int) -> None:
    sweep.tell()
    kinds = [name.split()[0] for name in sweep.ran]
    total = len(sweep.ran) + len(sweep.differing)
    proof.record("R1", f"{mode}-{dtype}", measure=f"gradients of HF architectures, layers {mode}, {dtype}",
                 figure=f"{len(sweep.ran)} of {total} bit-exact", target=f"all, at least {wanted_count}",
                 is_met=not sweep.differing and len(sweep.ran) >= wanted_count, seconds=sweep.seconds, ran=kinds,
                 differing=sweep.differing, left_out=sweep.left_out)  # fmt: skip
    assert sweep.differing == {}
    assert len(sweep.ran) >= wanted_count


def test_a_difference_of_one_bit_is_seen(sweep, monkeypatch):
    """The sweep itself: a gradient that is off by its last bit is a difference."""
    steps, straight = iter(range(100)), one_step

    def bent(model: nn.Module) -> list[Tensor | None]:
        found = straight(model)
        if next(steps) >= 2:  # the two of the reference are let be
            last = found[-1].view(torch.int32).flatten()
            last[-1] ^= 1
        return found

    monkeypatch.setitem(globals(), "one_step", bent)
    sweep.take("gpt2", "plain", "fp32")
    assert list(sweep.differing) == ["gpt2 plain fp32"] and not sweep.ran, sweep.left_out


def test_every_architecture_has_its_day():
    names = [str(number) for number in range(189)]
    seen = {name for day in range(1, 366) for name in rotating(names, day)[:8]}
    assert seen == set(names)
