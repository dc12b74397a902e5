"""Bit-exactness over the architectures people train: tiny random causal language models of transformers.

Each saves tensors in its own manner (views, in-place operations, casts, sparse routing, scans), which no model written
for a test would. Eight of them a day in CI, all of them in the nightly sweep.
"""

from __future__ import annotations

import datetime
import warnings

import pytest
from built import needs_memsys

needs_memsys()
pytest.importorskip("transformers")

from architectures import Unbuildable, architectures, one_step, tiny_model  # noqa: E402
from gradients import DROPPED, TIERS, assert_idle, assert_same, bits_equal, offloaded  # noqa: E402

import memsys  # noqa: E402

SAMPLE_COUNT = 8
WANTED_COUNT = 40
# Tried in turn until enough of a day's sample can be built.
CANDIDATE_COUNT = 3 * SAMPLE_COUNT


def rotating(names: list[str], day: int) -> list[str]:
    """Candidates for one day of the year, neighbours far apart in the alphabet; each has its day."""
    begin = day * SAMPLE_COUNT
    spread = [names[(place * 61) % len(names)] for place in range(len(names))] if len(names) % 61 else names
    return [spread[(begin + place) % len(names)] for place in range(CANDIDATE_COUNT)]


def check(kind: str, spill_dir) -> str | None:
    """Compares one architecture with and without memsys, on both tiers; returns why it could not be, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the models' own: deprecations, missing kernels
        try:
            model = tiny_model(kind)
            wanted, again = one_step(model), one_step(tiny_model(kind))
        except Unbuildable as reason:
            return str(reason).splitlines()[0]
        except Exception as error:
            return f"fails without memsys: {type(error).__name__}: {str(error).splitlines()[:1]}"
        if not all(
            (a is None) == (b is None) and (a is None or bits_equal(a, b)) for a, b in zip(wanted, again, strict=True)
        ):
            return "is not deterministic by itself"
        wanted = [None if tensor is None else tensor.clone() for tensor in wanted]
        for policy in (*TIERS.values(), DROPPED):
            offloaded(model, spill_dir, policy)
            assert_same(one_step(model), wanted)
            if policy is DROPPED:  # the first step proves what the second drops
                assert_same(one_step(model), wanted)
            assert memsys.stats(model).packed_count > 0
            assert_idle(model)
            memsys.restore(model)
    return None


def sweep(kinds: list[str], spill_dir, enough: int) -> tuple[list[str], dict[str, str]]:
    """(names that ran, names that could not with the reason), until `enough` have run. A difference fails, named."""
    ran: list[str] = []
    left_out: dict[str, str] = {}
    differing: dict[str, str] = {}
    for kind in kinds:
        try:
            reason = check(kind, spill_dir)
        except Exception as error:
            differing[kind] = f"{type(error).__name__}: {error}"
            continue
        if reason is None:
            ran.append(kind)
        else:
            left_out[kind] = reason
        if len(ran) == enough:
            break
    print(f"{len(ran)} ran: {' '.join(ran)}")
    for kind, reason in left_out.items():
        print(f"left out {kind}: {reason}")
    assert differing == {}
    return ran, left_out


@pytest.mark.slow
def test_a_days_sample_of_architectures(tmp_path):
    day = datetime.date.today().timetuple().tm_yday
    kinds = rotating(architectures(), day)
    print(f"day {day}: {' '.join(kinds)}")
    ran, _ = sweep(kinds, tmp_path, SAMPLE_COUNT)
    assert len(ran) == SAMPLE_COUNT


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_best_known(kind, tmp_path):
    assert check(kind, tmp_path) is None


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_architecture(tmp_path):
    ran, _ = sweep(architectures(), tmp_path, enough=-1)
    assert len(ran) >= WANTED_COUNT


def test_every_architecture_has_its_day():
    names = [str(number) for number in range(189)]
    seen = {name for day in range(1, 366) for name in rotating(names, day)[:SAMPLE_COUNT]}
    assert seen == set(names)
