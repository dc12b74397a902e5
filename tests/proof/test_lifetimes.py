"""Fifteen lives of an autograd graph, by name: in each the gradients are those without memsys, or the error is torch's.

The scenarios are those of tests/memsys/activations/test_lifetime.py; here each runs over every road, and is counted.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator

import pytest
from built import needs_memsys

needs_memsys()

import proof  # noqa: E402
from gradients import DROPPED, TIERS  # noqa: E402
from scenario_files import scenarios  # noqa: E402

import memsys  # noqa: E402
from memsys import _C, runtimes  # noqa: E402
from memsys.activations.recipes import RecipeBook  # noqa: E402

pytestmark = pytest.mark.proof

SCENARIOS = "memsys/activations/test_lifetime.py"
_IN_UNPACK = [{"fault": "io_error", "kind": memsys.SpillError}, {"fault": "corrupt", "kind": memsys.CorruptionError}]
# Name: scenarios, each with the values of what it leaves open besides policy, tmp_path and faulty.
CASES: dict[str, list[tuple[str, list[dict]]]] = {
    "two forwards, one backward": [
        ("test_two_forwards_then_one_backward_of_the_sum", [{}]),
        ("test_two_forwards_then_backward_of_the_first_alone", [{}]),
    ],
    "forward without backward": [("test_forward_without_backward_then_a_step", [{}])],
    "retain_graph twice": [("test_retain_graph_twice", [{}])],
    "double backward": [("test_double_backward", [{}])],
    "partial backward": [
        ("test_partial_backward", [{}]),
        ("test_backward_of_a_slice_of_the_outputs_then_of_the_rest", [{}]),
    ],
    "nested contexts": [("test_nested_contexts", [{}])],
    "generator closed inside a context": [
        ("test_a_generator_closed_inside_a_context", [{"begins": "outside"}, {"begins": "inside"}])
    ],
    "backward in another thread": [("test_backward_in_another_thread", [{}])],
    "eight threads": [("test_eight_threads_share_a_model", [{}])],
    "reentrant checkpoint": [("test_checkpoint_inside", [{"use_reentrant": True}, {"use_reentrant": False}])],
    "exception in forward": [("test_exception_in_forward", [{"kind": ValueError}, {"kind": KeyboardInterrupt}])],
    "exception in pack and in unpack": [
        ("test_exception_in_pack", [{}]),
        ("test_exception_in_unpack", _IN_UNPACK),
    ],
    "KeyboardInterrupt in backward": [("test_keyboard_interrupt_in_backward", [{}])],
    "in-place change after a save raises": [
        ("test_in_place_change_of_a_moved_tensor_raises", [{}]),
        ("test_optimizer_step_between_forward_and_backward_raises", [{}]),
    ],
    "no_grad": [("test_no_grad_moves_nothing", [{}])],
}
ROADS = {**TIERS, "dropped": DROPPED}
_passed: dict[str, float] = {}


@pytest.fixture
def faulty() -> Iterator[_C.Runtime]:
    """A runtime whose reads and writes can be made to fail; in force for scenarios that ask for it."""
    yield _C.Runtime(_C.DeviceKind.host, faults=_C.FaultSeam.faulty)
    runtimes.override_runtime(None)


@pytest.mark.parametrize("case", CASES)
def test_lifetime(case, faulty, tmp_path, monkeypatch):
    begin = time.monotonic()
    for name, rows in CASES[case]:
        scenario = getattr(scenarios(SCENARIOS), name)
        wanted = inspect.signature(scenario).parameters
        for road in ROADS if "policy" in wanted else ["file"]:
            with monkeypatch.context() as patch:
                if road == "dropped":
                    patch.setattr(RecipeBook, "is_proven", lambda book, key: True)  # from the first forward on
                runtimes.override_runtime(faulty if "faulty" in wanted else None)
                given = {"policy": ROADS[road], "tmp_path": tmp_path, "faulty": faulty}
                for row in rows:
                    scenario(**{key: value for key, value in given.items() if key in wanted}, **row)
    _passed[case] = time.monotonic() - begin


def test_all_fifteen():
    if len(_passed) == 0:
        pytest.skip("the cases were left out")
    assert len(CASES) == 15
    missing = [case for case in CASES if case not in _passed]
    proof.record(
        "R2", "lifetimes", measure="lives of an autograd graph, over file, host memory and dropped results",
        figure=f"{len(_passed)}/{len(CASES)}", target="15/15", is_met=not missing, seconds=sum(_passed.values()),
        cases=list(CASES), not_passed=missing,
    )  # fmt: skip
    assert not missing
