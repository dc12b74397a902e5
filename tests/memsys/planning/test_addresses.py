"""Plans of addresses: no overlap, never below the bound, blocks planned once, and nothing else read back from files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_files import rewrite

from memsys.errors import InputError, UnsupportedError
from memsys.planning.addresses import AddressPlan, plan_addresses
from memsys.planning.exact_addresses import place_exactly
from memsys.planning.trace import Request


def overlapping(plan: AddressPlan) -> list[tuple[int, int]]:
    """The pairs that are alive together and share a byte, found by looking at every pair."""
    placed = [(r, o) for r, o in zip(plan.requests, plan.offsets, strict=True) if o >= 0]
    return [
        (i, j)
        for i, (left, a) in enumerate(placed)
        for j, (right, b) in enumerate(placed[:i])
        if left.begin < right.end and right.begin < left.end and a < b + right.bytes and b < a + left.bytes
    ]


def step(layers: int, block: int = 9) -> list[Request]:
    """A made-up step: each block saves one tensor and has transients that overlap in a chain."""
    requests, position = [], 0
    length = 4 * layers * block * 2
    for phase in ("forward", "backward"):
        for layer in range(layers) if phase == "forward" else reversed(range(layers)):
            if phase == "forward":
                requests.append(Request(4096, position, length - position, 0, layer, phase))
                position += 1
            for one in range(block):
                requests.append(Request(512 * (1 + 5 * one % 7), position + 2 * one, position + 2 * one + 3, 0, layer,
                                        phase))  # fmt: skip
            position += 2 * block + 2
    return sorted(requests, key=lambda request: request.begin)


SIZES, LIVES = st.integers(0, 9000), st.tuples(st.integers(0, 30), st.integers(0, 12))
PLACES = st.tuples(st.integers(0, 1), st.integers(-1, 2), st.sampled_from(["forward", "backward"]))


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    rows = draw(st.lists(st.tuples(SIZES, LIVES, PLACES), max_size=40))
    requests = [Request(size, begin, begin + life, *place) for size, (begin, life), place in rows]
    return sorted(requests, key=lambda request: request.begin)


@settings(max_examples=150, deadline=None)
@given(traces(), st.sampled_from([1, 64, 512]))
def test_plans_never_overlap(requests: list[Request], alignment: int) -> None:
    plan = plan_addresses(requests, alignment=alignment)
    assert overlapping(plan) == []
    assert plan.peak_bytes >= plan.bound_bytes and plan.gap >= 0
    for request, offset in zip(requests, plan.offsets, strict=True):
        is_planned = request.stream == 0 and request.bytes > 0 and request.begin < request.end
        assert (offset >= 0) == is_planned
        assert offset < 0 or (offset % alignment == 0 and offset + request.bytes <= plan.peak_bytes)


def test_blocks_that_ask_alike_are_planned_once() -> None:
    plan = plan_addresses(step(6))
    assert overlapping(plan) == []
    assert sum(block.count for block in plan.blocks) == 12
    assert len(plan.blocks) <= 2
    assert all(block.gap == 0 for block in plan.blocks)
    assert plan.gap <= 0.02


def test_nothing_to_plan() -> None:
    plan = plan_addresses([Request(100, 0, 1, stream=3)])
    assert plan.offsets == (-1,) and plan.peak_bytes == 0 and plan.gap == 0


def test_requests_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="order of `begin`"):
        plan_addresses([Request(1, 5, 6), Request(1, 0, 9)])


def test_a_saved_plan_comes_back(tmp_path) -> None:
    plan = plan_addresses(step(3))
    path = tmp_path / "plan.json"
    plan.save(path)
    assert AddressPlan.load(path) == plan


@pytest.mark.parametrize("change", [{"alignment": "512"}, {"offsets": [0] * 57}, {"peak_bytes": 512}, {"offsets": []}])
def test_a_file_that_is_no_plan_is_refused(tmp_path, change) -> None:
    plan = plan_addresses(step(3))
    path = tmp_path / "plan.json"
    plan.save(path)
    rewrite(path, change)
    with pytest.raises(InputError, match="wanted a plan of addresses"):
        AddressPlan.load(path)


CHAIN = [Request(1, 0, 3), Request(2, 1, 5), Request(1, 2, 6), Request(1, 3, 4), Request(1, 4, 7), Request(2, 5, 8)]


@pytest.mark.parametrize("unit", [1, 3])
def test_the_exact_solver_proves_what_it_finds(unit: int) -> None:
    pytest.importorskip("ortools", reason="CP-SAT is not installed")
    requests = [replace(request, bytes=unit * request.bytes) for request in CHAIN]
    heights = [sum(request.bytes for request in requests[:index]) for index in range(len(requests) + 1)]
    plan = plan_addresses(requests, alignment=1)
    start = {"offsets": heights[:-1], "peak_bytes": heights[-1], "bound_bytes": 1, "order": "a heap"}
    found = place_exactly(requests, 1, start, 10.0)
    assert found["order"] == "cp-sat"
    assert found["bound_bytes"] == found["peak_bytes"] == plan.peak_bytes
    exact = replace(plan, offsets=tuple(found["offsets"]), blocks=())
    assert overlapping(exact) == []
    again = place_exactly(requests, 1, {**found, "order": "the best"}, 10.0)
    assert again["order"].endswith("cp-sat") and again["peak_bytes"] == found["peak_bytes"]


def test_without_the_solver_the_remedy_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    start = {"offsets": [0], "peak_bytes": 2, "bound_bytes": 1, "order": "size"}
    with pytest.raises(UnsupportedError, match="pip install ortools"):
        place_exactly([Request(1, 0, 1)], 1, start, 1.0)
