"""The models of torch's allocator, on requests whose outcome its rules tell, and on any."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsys.planning.caching_model import events_of, replay_classic, replay_expandable
from memsys.planning.trace import Request

MIB = 1 << 20


def together(*sizes: int) -> list[Request]:
    """All alive at the end."""
    return [Request(size, index, len(sizes)) for index, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "classic", "expandable"),
    [
        ([1], 2 * MIB, 2 * MIB),
        ([MIB], 2 * MIB, 2 * MIB),
        ([MIB, MIB, 512], 4 * MIB, 4 * MIB),
        ([MIB + 1], 20 * MIB, 20 * MIB),
        ([MIB + 1, 9 * MIB, 9 * MIB], 20 * MIB, 20 * MIB),
        ([10 * MIB], 10 * MIB, 20 * MIB),
        ([11 * MIB + 1], 12 * MIB, 20 * MIB),
        ([30 * MIB], 30 * MIB, 40 * MIB),
        ([9 * MIB, 9 * MIB, 9 * MIB], 40 * MIB, 40 * MIB),
        ([512, 30 * MIB], 32 * MIB, 42 * MIB),
    ],
)
def test_segments_are_as_torch_says(sizes: list[int], classic: int, expandable: int) -> None:
    assert replay_classic(together(*sizes)).reserved_peak_bytes == classic
    assert replay_expandable(together(*sizes)).reserved_peak_bytes == expandable


def test_a_growing_tensor_fragments_the_classic_pool_only() -> None:
    """What expandable segments are for: each request is a little larger than all holes before it."""
    growing = [Request((20 + 2 * index) * MIB, 2 * index, 2 * index + 1) for index in range(10)]
    assert replay_classic(growing).reserved_peak_bytes == sum(request.bytes for request in growing)
    assert replay_expandable(growing).reserved_peak_bytes == 40 * MIB


def test_a_rest_of_a_mebibyte_is_not_split_off() -> None:
    requests = [Request(12 * MIB, 0, 1), Request(11 * MIB, 2, 5), Request(MIB + 512, 3, 4)]
    assert replay_classic(requests).reserved_peak_bytes == (12 + 20) * MIB
    assert replay_expandable(requests).reserved_peak_bytes == 20 * MIB


def test_streams_share_nothing() -> None:
    requests = [Request(512, 0, 1, 0), Request(512, 2, 3, 1)]
    assert replay_classic(requests).reserved_peak_bytes == 4 * MIB


def test_a_step_repeated_finds_its_blocks() -> None:
    requests = together(30 * MIB, 5 * MIB, 700)
    assert replay_classic(requests, steps=1) == replay_classic(requests, steps=5)
    assert replay_classic(requests).segment_count == 3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(0, 30), st.integers(1, 12), st.integers(0, 1))))
def test_reserved_holds_what_is_live(rows: list[tuple[int, int, int, int]]) -> None:
    requests = [Request(size, begin, begin + life, stream) for size, begin, life, stream in rows]
    for replay in (replay_classic, replay_expandable):
        found = replay(requests)  # which checks that blocks tile the segments
        assert found.reserved_peak_bytes >= found.live_peak_bytes
        assert found.ratio >= 1.0


def test_releases_come_before_requests() -> None:
    assert list(events_of([Request(1, 0, 2), Request(1, 2, 3)])) == [(True, 0), (False, 0), (True, 1), (False, 1)]
