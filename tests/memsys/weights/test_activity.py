"""The counts equal what one counts by hand, and those of a slow count over sets, however the tokens come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memsys.weights import activity
from memsys.weights.activity import ActivityCounter


def rows_of(*rows: str) -> torch.Tensor:
    """(tokens, neurons) from texts such as "10.1": a "1" is an active neuron."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def by_sets(sequences: list[torch.Tensor], k: int) -> tuple[float | None, float | None]:
    """(s_agg(k), new(k)) counted with sets; each sequence is (tokens, neurons)."""
    used, fresh = [], []
    for sequence in sequences:
        tokens = [set(row.nonzero().flatten().tolist()) for row in sequence]
        for place in range(len(tokens)):
            if place >= k - 1:
                used.append(len(set().union(*tokens[place - k + 1 : place + 1])) / sequence.shape[1])
            if place >= k:
                fresh.append(len(tokens[place] - set().union(*tokens[place - k : place])) / sequence.shape[1])
    return tuple(sum(values) / len(values) if values else None for values in (used, fresh))


def test_by_hand() -> None:
    counter = ActivityCounter(4, (1, 2, 3, 4))
    counter.add(rows_of("1...", "11..", "...1")[None])
    counter.end_batch()
    assert counter.active_share == 4 / 12
    assert [counter.used_share(k) for k in (1, 2, 3, 4)] == [4 / 12, (2 + 3) / 8, 3 / 4, None]
    assert [counter.new_share(k) for k in (1, 2, 3, 4)] == [(1 + 1) / 8, 1 / 4, None, None]
    assert counter.unions == [(3, 3 / 4)]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), token_by_token=st.booleans())
def test_any_tokens(chunk: int, seed: int, share: float, token_by_token: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    sequences, tokens, neurons = (int(torch.randint(1, top, (1,), generator=generator)) for top in (4, 9, 12))
    active = torch.rand(sequences, tokens, neurons, generator=generator) < share
    counter = ActivityCounter(neurons, (1, 2, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity, "_CHUNK_ELEMENTS", chunk)
        for part in active.split(1, dim=1) if token_by_token else [active]:
            counter.add(part)
    counter.end_batch()
    for k in (1, 2, 5):
        assert (counter.used_share(k), counter.new_share(k)) == pytest.approx(by_sets(list(active), k))
    assert counter.active_share == pytest.approx(float(active.float().mean()))
    assert counter.unions == [(sequences * tokens, pytest.approx(float(active.flatten(0, 1).any(0).float().mean())))]


def test_a_prompt_and_what_is_generated_after_it_are_one_sequence() -> None:
    active = torch.rand(2, 9, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    counter = ActivityCounter(5, (4,))
    counter.add(active[:, :6])
    for place in (6, 7, 8):
        counter.add(active[:, place : place + 1])
    assert (counter.used_share(4), counter.new_share(4)) == pytest.approx(by_sets(list(active), 4))
    assert (counter.call_count, counter.single_token_call_count) == (4, 3)


def test_two_calls_of_many_tokens_are_two_sequences_and_so_are_two_batches() -> None:
    active = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    counter = ActivityCounter(5, (2,))
    counter.add(active[:1])
    counter.add(active[1:2])
    counter.end_batch()
    for place in range(3):
        counter.add(active[2:3, place : place + 1])
    counter.end_batch()
    counter.add(active[3:, :1])
    counter.end_batch()
    wanted = [*active[:3], active[3, :1]]
    assert (counter.used_share(2), counter.new_share(2)) == pytest.approx(by_sets(wanted, 2))
    assert [tokens for tokens, _ in counter.unions] == [6, 3, 1]


def test_nothing_is_counted_of_nothing() -> None:
    counter = ActivityCounter(5, (1,))
    counter.add(torch.zeros(2, 0, 5, dtype=torch.bool))
    counter.end_batch()
    assert (counter.active_share, counter.used_share(1), counter.unions) == (0.0, None, [])
