"""What each way to serve FFN weights would read and take, from how active their neurons are and from a machine's rates.

Only the FFNs' weights are counted: all else is resident, whichever way is chosen. A way that does not fit into the
budget is not listed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from memsys.weights.cost import Rates, Read, Work, predict

PAGE_BYTES = 4096
# Reads of whole layers: so large, and so many in flight.
LAYER_CHUNK_BYTES = 1 << 20
LAYER_DEPTH = 4
ROW_DEPTH = 32
# From this union on, rows save a batched pass so few reads that their smaller chunks cost more.
FULL_UNION = 0.85


@dataclass(frozen=True)
class FfnCoverage:
    """Sizes and activity of one FFN over all that was measured.

    `up_bytes` and `down_bytes` are of one neuron's row and column, `gate_bytes` is 0 without a gate. `used_share[k]` is
    s_agg(k), `new_share[k]` what a token uses beyond the k before it; None where no sequence was long enough.
    `union_share` is the mean over the batches of the share that any token of a batch uses.
    """

    up: str
    gate: str
    down: str
    activation: str
    neurons: int
    up_bytes: int
    gate_bytes: int
    down_bytes: int
    token_count: int
    active_share: float
    used_share: dict[int, float | None]
    new_share: dict[int, float | None]
    union_share: float
    batch_tokens: float
    single_token_share: float

    @property
    def dense_bytes(self) -> int:
        return self.neurons * (self.up_bytes + self.gate_bytes + self.down_bytes)

    @property
    def stride_bytes(self) -> int:
        """Bytes of a neuron's bundle in a packed file: whole pages."""
        return _pages(self.up_bytes + self.gate_bytes + self.down_bytes)

    @property
    def predicting_bytes(self) -> int:
        """Bytes of the projection whose sign tells exactly which neurons are active: it stays resident."""
        return self.neurons * (self.gate_bytes or self.up_bytes)

    @property
    def streamed_row_bytes(self) -> int:
        """What the exact mode keeps of a neuron in its window."""
        return self.down_bytes + (self.up_bytes if self.gate_bytes else 0)

    @property
    def streamed_chunk_bytes(self) -> int:
        """What the exact mode reads for a neuron: its parts alone where they lie on pages, else the whole bundle."""
        parts = (self.up_bytes, self.gate_bytes, self.down_bytes)
        return self.streamed_row_bytes if all(part % PAGE_BYTES == 0 for part in parts) else self.stride_bytes


@dataclass(frozen=True)
class Prediction:
    """One way to serve the FFNs: what stays in memory, and what a token or a step reads. `io_s` is None without rates.
    `window` counts tokens for rows, layers for the layer window."""

    way: str
    window: int
    resident_bytes: float
    read_bytes: float
    chunk_bytes: float
    io_s: float | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def is_better(self, other: Prediction) -> bool:
        """Quicker; without rates, reading less."""
        if self.io_s is None or other.io_s is None:
            return self.read_bytes < other.read_bytes
        return self.io_s < other.io_s


def predict_token(ffns: Sequence[FfnCoverage], budget_bytes: float, rates: Rates | None) -> list[Prediction]:
    """The ways to generate, by what one token reads: one token at a time goes through all layers, forward only."""
    total = sum(ffn.dense_bytes for ffn in ffns)
    if total <= budget_bytes:
        return [_prediction("resident", len(ffns), total, [], rates)]
    rows = [_rows_of_token(ffns, budget_bytes, rates, is_exact) for is_exact in (True, False)]
    window = _layers_in(ffns, budget_bytes)
    loads = (len(ffns) - window + 1) * total / len(ffns) if window else 0
    layers = [_prediction("layers", window, window * total / len(ffns), [_layer_read(loads)], rates)] if window else []
    return [*(one for one in rows if one is not None), *layers]


def predict_step(ffns: Sequence[FfnCoverage], budget_bytes: float, rates: Rates | None) -> list[Prediction]:
    """The ways to train on such batches with these weights frozen, by what one step, forward and backward, reads.

    With rows, forward reads the layers that the window does not hold, and the masked backward the union of the active
    rows of those; the networks must be ungated and have a plain ReLU.
    """
    total, count = sum(ffn.dense_bytes for ffn in ffns), len(ffns)
    if total <= budget_bytes:
        return [_prediction("resident", count, total, [], rates)]
    window = _layers_in(ffns, budget_bytes)
    if not window:
        return []
    share = (count - window) / count
    resident = window * total / count
    ways = []
    if all(ffn.activation == "relu" for ffn in ffns):
        unions = [Read(share * ffn.union_share * ffn.neurons * ffn.stride_bytes, ffn.stride_bytes, ROW_DEPTH)
                  for ffn in ffns]  # fmt: skip
        ways.append(_prediction("rows", window, resident, [_layer_read(share * total), *unions], rates))
    return [*ways, _prediction("layers", window, resident, [_layer_read(2 * share * total)], rates)]


def _rows_of_token(
    ffns: Sequence[FfnCoverage], budget_bytes: float, rates: Rates | None, is_exact: bool
) -> Prediction | None:
    """The longest window that fits: resident are the projections that predict (exact mode) and the window's rows."""
    for k in sorted(known_windows(ffns), reverse=True):
        if is_exact:
            kept = [ffn.predicting_bytes + ffn.used_share[k] * ffn.neurons * ffn.streamed_row_bytes for ffn in ffns]
        else:
            kept = [ffn.used_share[k] * ffn.dense_bytes for ffn in ffns]
        if sum(kept) > budget_bytes:
            continue
        chunks = [ffn.streamed_chunk_bytes if is_exact else ffn.stride_bytes for ffn in ffns]
        reads = [Read(ffn.new_share[k] * ffn.neurons * chunk, chunk, ROW_DEPTH)
                 for ffn, chunk in zip(ffns, chunks, strict=True)]  # fmt: skip
        return _prediction("rows" if is_exact else "rows, predicted", k, sum(kept), reads, rates)
    return None


def known_windows(ffns: Sequence[FfnCoverage]) -> list[int]:
    """The windows, in tokens, that were measured for every FFN."""
    return [k for k in ffns[0].used_share
            if all(ffn.used_share.get(k) is not None and ffn.new_share.get(k) is not None for ffn in ffns)]  # fmt: skip


def _layers_in(ffns: Sequence[FfnCoverage], budget_bytes: float) -> int:
    """How many layers of mean size the budget holds."""
    return min(len(ffns) - 1, math.floor(budget_bytes * len(ffns) / sum(ffn.dense_bytes for ffn in ffns)))


def _layer_read(size_bytes: float) -> Read:
    return Read(size_bytes, LAYER_CHUNK_BYTES, LAYER_DEPTH)


def _prediction(way: str, window: int, resident_bytes: float, reads: Sequence[Read], rates: Rates | None) -> Prediction:
    read_bytes = sum(read.size_bytes for read in reads)
    weighted = sum(read.size_bytes * read.chunk_bytes for read in reads)
    io_s = None if rates is None else predict(Work(tuple(reads)), rates).io_s
    return Prediction(way, window, resident_bytes, read_bytes, weighted / read_bytes if read_bytes else 0, io_s)


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
