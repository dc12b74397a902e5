"""Counts which neurons of a layer are active: each token, over the last k tokens, over a batch.

The names are those of "LLM in a flash" (section 3.1): s_agg(k) is the share of a layer's neurons that k tokens in a row
use, new(k) the share that a token uses and none of the k before it did. Counts are exact; a window is counted where it
is full.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Positions are int32, and this many of them are looked at together.
_NEVER = -(1 << 30)
_CHUNK_ELEMENTS = 1 << 22


class ActivityCounter:
    """Counts of one layer. A call with several tokens begins sequences; calls with one token each go on with them."""

    def __init__(self, neurons: int, windows: Sequence[int]) -> None:
        self.neurons = neurons
        self.windows = tuple(windows)
        self.token_count = 0
        self.call_count = 0
        self.single_token_call_count = 0
        # (tokens, share of neurons that any of them uses) of each batch.
        self.unions: list[tuple[int, float]] = []
        self._active_count = 0
        self._used = dict.fromkeys(self.windows, 0)
        self._new = dict.fromkeys(self.windows, 0)
        self._used_places = dict.fromkeys(self.windows, 0)
        self._new_places = dict.fromkeys(self.windows, 0)
        self._last: Tensor | None = None  # (sequences, neurons), where each neuron was active last
        self._position = 0
        self._union: Tensor | None = None
        self._batch_tokens = 0

    def add(self, active: Tensor) -> None:
        """Counts the next tokens: bool (sequences, tokens, neurons)."""
        sequences, tokens, _ = active.shape
        if tokens != 1 or self._last is None or len(self._last) != sequences:
            self._last = torch.full((sequences, self.neurons), _NEVER, dtype=torch.int32, device=active.device)
            self._position = 0
        self.call_count += 1
        self.single_token_call_count += tokens == 1
        self.token_count += sequences * tokens
        self._batch_tokens += sequences * tokens
        self._active_count += int(active.sum())
        union = active.flatten(0, 1).any(0)
        self._union = union if self._union is None else self._union | union
        step = max(1, _CHUNK_ELEMENTS // max(tokens, 1))
        for row in range(sequences if tokens else 0):
            for begin in range(0, self.neurons, step):
                self._count(active[row, :, begin : begin + step], self._last[row, begin : begin + step])
        for k in self.windows:
            end = self._position + tokens
            self._used_places[k] += sequences * max(0, end - max(self._position, k - 1))
            self._new_places[k] += sequences * max(0, end - max(self._position, k))
        self._position += tokens

    def _count(self, active: Tensor, last: Tensor) -> None:
        """Counts neurons of one sequence, (tokens, neurons), and moves `last` on."""
        places = torch.arange(self._position, self._position + len(active), dtype=torch.int32, device=active.device)
        seen = torch.where(active, places[:, None], _NEVER).cummax(0).values.maximum(last)
        age = places[:, None] - seen
        gap = places[:, None] - torch.cat((last[None], seen[:-1]))
        for k in self.windows:
            self._used[k] += int((age[max(0, k - 1 - self._position) :] < k).sum())
            first = max(0, k - self._position)
            self._new[k] += int((active[first:] & (gap[first:] > k)).sum())
        last.copy_(seen[-1])

    def end_batch(self) -> None:
        """What follows belongs to other sequences."""
        if self._batch_tokens:
            self.unions.append((self._batch_tokens, float(self._union.sum()) / self.neurons))
        self._last = self._union = None
        self._position = self._batch_tokens = 0

    @property
    def active_share(self) -> float:
        """The mean share of neurons that a token uses."""
        return self._active_count / (self.token_count * self.neurons) if self.token_count else 0.0

    def used_share(self, k: int) -> float | None:
        """s_agg(k); None if no sequence is that long."""
        places = self._used_places[k]
        return self._used[k] / (places * self.neurons) if places else None

    def new_share(self, k: int) -> float | None:
        """new(k); None if no sequence is longer than k."""
        places = self._new_places[k]
        return self._new[k] / (places * self.neurons) if places else None
