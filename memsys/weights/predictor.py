"""A low-rank predictor of active neurons, and the network that believes it: approximate, opt-in, and always measured.

After "LLM in a flash" (arXiv 2312.11514, section 3.1): with a guess of the active set before any projection is
computed, nothing of the network but the guesser need be resident, and one bundle brings all that a neuron needs. A
neuron that is missed counts as silent, so the result is not exact; `measure` says how many are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memsys.errors import InputError, UnsupportedError
from memsys.weights.ffn_rows import BundlePlace, KeepRule, RowPool, StreamedRows

Batch = tuple[Tensor, Tensor]  # a network's inputs (tokens, d), and which neurons each made active (tokens, n), bool


class PredictorReport(NamedTuple):
    """How a predictor did. Shares of neurons are means over tokens; rates are over all tokens and neurons."""

    token_count: int
    active_share: float
    predicted_share: float
    recall: float  # of the neurons that were active
    false_negative_rate: float  # 1 - recall
    false_positive_rate: float  # of the neurons that were silent

    def __str__(self) -> str:
        return (f"recall {self.recall:.2%}, false negatives {self.false_negative_rate:.2%}, false positives "
                f"{self.false_positive_rate:.2%}; {self.active_share:.2%} of the neurons are active and "
                f"{self.predicted_share:.2%} predicted, over {self.token_count} tokens")  # fmt: skip


class LowRankPredictor(nn.Module):
    """Which neurons an input makes active: sigmoid(out(inner(x))) > threshold, two matrices of `rank`.

    x: (..., d) -> (..., n) of bool. A lower threshold misses less and reads more.
    """

    def __init__(self, d: int, n: int, rank: int, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 < threshold < 1 or rank < 1:
            raise InputError(f"predictor: wanted a rank of 1 or more and a threshold between 0 and 1, found {rank} and "
                             f"{threshold}")  # fmt: skip
        self.threshold = threshold
        self.inner = nn.Linear(d, rank, bias=False)
        self.out = nn.Linear(rank, n)

    def scores(self, x: Tensor) -> Tensor:
        """Before the sigmoid."""
        return self.out(self.inner(x.to(self.inner.weight.dtype)))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.scores(x)) > self.threshold


def record_activity(projection: nn.Module, run: Callable[[], object]) -> Batch:
    """The inputs of `projection` (an `up`, or the `gate` of a gated network) while `run` runs, and what it woke."""
    seen: list[Batch] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        seen.append((x.reshape(-1, x.shape[-1]).clone(), output.detach().reshape(-1, output.shape[-1]) > 0))

    handle = projection.register_forward_hook(note)
    try:
        run()
    finally:
        handle.remove()
    if not seen:
        raise InputError("record_activity: wanted `run` to call the projection, and it did not; pass the module that "
                         "the model runs")  # fmt: skip
    return torch.cat([x for x, _ in seen]), torch.cat([active for _, active in seen])


def train_predictor(
    predictor: LowRankPredictor, batches: Sequence[Batch], *, epochs: int = 2, learning_rate: float = 1e-3
) -> list[float]:
    """Trains on recorded activity; returns the mean loss of each epoch. Active and silent neurons weigh the same in the
    loss however few are active, as the paper has it."""
    if epochs < 1 or not batches:
        raise InputError(
            f"train_predictor: wanted an epoch or more and some batches, found {epochs} and {len(batches)}"
        )
    optimizer = torch.optim.Adam(predictor.parameters(), lr=learning_rate)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for x, active in batches:
            optimizer.zero_grad()
            loss = _balanced_loss(predictor.scores(x), active)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
    return losses


def _balanced_loss(scores: Tensor, active: Tensor) -> Tensor:
    each = F.binary_cross_entropy_with_logits(scores, active.to(scores.dtype), reduction="none")
    sides = [each[side].mean() for side in (active, ~active) if side.any()]
    return torch.stack(sides).mean()


@torch.no_grad()
def measure(predictor: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> PredictorReport:
    """Compares predictions with recorded activity; use batches that it was not trained on."""
    hit = active_count = predicted_count = neuron_count = token_count = 0
    for x, active in batches:
        predicted = predictor(x)
        hit += int((predicted & active).sum())
        active_count += int(active.sum())
        predicted_count += int(predicted.sum())
        neuron_count += active.numel()
        token_count += active.shape[0]
    if token_count == 0:
        raise InputError("measure: wanted recorded activity, found none; see record_activity")
    recall = hit / max(active_count, 1) if active_count else 1.0
    silent_count = max(neuron_count - active_count, 1)
    return PredictorReport(token_count, active_count / neuron_count, predicted_count / neuron_count, recall, 1 - recall,
                           (predicted_count - hit) / silent_count)  # fmt: skip


class PredictedFFN(nn.Module):
    """A ReLU network of which only predicted neurons are read, each by its bundle, and nothing else is resident.

    Approximate: equal to rounding to the dense network without the neurons that are neither predicted nor still there
    from the calls before. `predictor`: x -> (..., n) of bool. Biases are resident. Other keywords as WindowedFFN has
    them. x: (..., d) -> (..., d), on the CPU, for inference.
    """

    def __init__(
        self,
        place: BundlePlace,
        predictor: nn.Module,
        *,
        biases: dict[str, Tensor] | None = None,
        policy: str = "window",
        window_tokens: int = 4,
        hot: Sequence[int] = (),
        capacity_rows: int | None = None,
        device_budget: int | str | None = None,
        pool: RowPool | None = None,
    ) -> None:
        super().__init__()
        unknown = set(biases or {}) - set(place.parts)
        if unknown:
            raise InputError(f"biases: wanted those of {place.parts}, found {sorted(unknown)}")
        self.predictor = predictor
        for part in place.parts:
            self.register_buffer(f"{part}_bias", (biases or {}).get(part), persistent=False)
        pool = pool or RowPool(device_budget=device_budget, max_row_bytes=place.stride_bytes)
        capacity = pool.capacity_for([place], len(place.parts)) if capacity_rows is None else capacity_rows
        rule = KeepRule(policy, window_tokens, tuple(hot))
        self.rows = StreamedRows(pool, place, place.parts, capacity_rows=capacity, rule=rule)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError("PredictedFFN: wanted inference, found an input that requires grad; run it under "
                                   "torch.no_grad()")  # fmt: skip
        with self.rows.pool.lock, torch.no_grad():
            mask = self.predictor(x)
            ids = mask.reshape(-1, mask.shape[-1]).any(0).nonzero().flatten()
            neurons = self.rows.resident(ids)
            if neurons is not None:
                out = self._part_of(x, neurons, slice(0, len(neurons)))
            else:
                out = x.new_zeros(x.shape)
                for some, places in self.rows.goes(ids):
                    out += self._part_of(x, some, places)
            return out if self.down_bias is None else out + self.down_bias

    def _part_of(self, x: Tensor, neurons: Tensor, places: slice | Tensor) -> Tensor:
        """What these neurons add to the output."""

        def project(part: str) -> Tensor:
            bias = getattr(self, f"{part}_bias")
            return F.linear(x, self.rows.matrix_of(part)[places], None if bias is None else bias[neurons])

        h = project("up")
        h = torch.relu(project("gate")) * h if "gate" in self.rows.parts else torch.relu(h)
        return h @ self.rows.matrix_of("down")[places]

    def stats(self) -> dict[str, int]:
        """What the store counts; see WindowedFFN.stats."""
        return self.rows.stats()
