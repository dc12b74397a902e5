"""What does each idea of "LLM in a flash" save, a token at a time? Its ladder, on reads past the page cache.

    python benchmarks/train_relu_gpt.py --save model.safetensors --trace trace.npz
    python benchmarks/train_predictors.py --model model.safetensors --trace trace.npz
    python benchmarks/bench_ladder.py --trace trace.npz --layers 4 --width 2048 --neurons 8192

The layers have the shape asked for and random 2-byte weights; which neurons a token uses comes from the trace of a real
sparse model, each of whose neurons stands for `neurons` / (its own count) of them, spread evenly. The rungs:

- naive: all FFN weights are read for every token. hybrid: half of them stay, the other half is read.
- +predictor: only the rows of neurons that the model's own low-rank predictor asks for are read, for every token; one
  of `--rank` and the layers' shape runs too, since the model's own is of its narrower width.
- +window: rows of the last `--window` tokens stay; at most half of the FFN's rows are in memory.
- +bundle: a neuron's up row and down column lie together, so that one read brings both.
- exact: as +bundle, told which neurons are active: what a predictor that never errs and costs nothing would save.

Rungs take the same token in turn. Times are medians over tokens, after the first ones have filled the window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shown
import torch
from bench_swap import machine
from train_relu_gpt import ragged

import memsys
from memsys import _C, _tensor
from memsys.budget import default_spill_dir, format_bytes
from memsys.cli.console import plain_table
from memsys.runtimes import runtime_for
from memsys.weights.checked import Weights, open_weights
from memsys.weights.predictor import LowRankPredictor

COLUMNS = (
    "rung",
    "read a token",
    "a read",
    "rate",
    "I/O",
    "management",
    "prediction",
    "compute",
    "total",
    "to naive",
    "to hybrid",
)
PARTS = ("up", "down")
SECONDS = ("io_s", "management_s", "prediction_s", "compute_s")


class Shape(NamedTuple):
    layers: int
    neurons: int
    width: int
    window: int
    rank: int


class Neurons(NamedTuple):
    """Of each token and layer of a sparse model, some of its neurons, spread over `copies` times as many."""

    ids: np.ndarray
    offsets: np.ndarray  # (layers, tokens + 1) into ids
    own_neurons: int
    copies: int

    def of(self, layer: int, token: int) -> torch.Tensor:
        """Ids, ascending."""
        offsets = self.offsets[layer % self.offsets.shape[0]]
        ids = np.sort(self.ids[offsets[token] : offsets[token + 1]]).astype(np.int64)
        return torch.from_numpy(np.concatenate([ids + copy * self.own_neurons for copy in range(self.copies)]))

    def share(self) -> float:
        layers, ends = self.offsets.shape
        return len(self.ids) / (layers * (ends - 1) * self.own_neurons)


class Trace:
    """Which neurons were active, and which were predicted."""

    def __init__(self, path: Path, neurons: int) -> None:
        with np.load(path) as found:
            if "predicted_ids" not in found:
                raise SystemExit(f"{path}: wanted a trace with predictions, found one without; run "
                                 "benchmarks/train_predictors.py on it first")  # fmt: skip
            own = int(found["neurons"])
            copies = max(1, neurons // own)
            self.active = Neurons(found["ids"], found["offsets"], own, copies)
            self.predicted = Neurons(found["predicted_ids"], found["predicted_offsets"], own, copies)
        self.neurons = own * copies

    def missed_share(self) -> float:
        """Of the active neurons, those that were not predicted."""
        layers, ends = self.active.offsets.shape
        pairs = [(self.active.of(layer, token), self.predicted.of(layer, token))
                 for layer in range(layers) for token in range(ends - 1)]  # fmt: skip
        missed = sum(len(np.setdiff1d(active, predicted, True)) for active, predicted in pairs)
        return missed / max(1, sum(len(active) for active, _ in pairs))


class FfnBlock(torch.nn.Module):
    """What pack_weights knows as an ungated ReLU network."""

    def __init__(self, neurons: int, width: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(width, neurons, bias=False, dtype=torch.bfloat16)
        self.activation_fn = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(neurons, width, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


def write_files(folder: str, shape: Shape) -> tuple[Weights, Weights]:
    """The packed model with its bundles, and a file of the same rows that are not bundled."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(FfnBlock(shape.neurons, shape.width) for _ in range(shape.layers)))
    path = str(Path(folder) / "ffn.safetensors")
    memsys.pack_weights(model, path)
    rows = {}
    for index, block in enumerate(model):
        rows[f"{index}.up"], rows[f"{index}.down"] = (
            block.fc1.weight.detach(),
            block.fc2.weight.detach().t().contiguous(),
        )
    rows_path = str(Path(folder) / "rows.safetensors")
    memsys.pack_weights(rows, rows_path)
    return open_weights(path), open_weights(rows_path, "never")  # a checksum there covers many rows


class Spent(NamedTuple):
    """Of one token: bytes read, reads, and seconds."""

    read_bytes: int
    read_count: int
    io_s: float
    management_s: float
    prediction_s: float
    compute_s: float


class Dense:
    """Reads whole matrices, or one half of each, for every token."""

    def __init__(self, rows: Weights, shape: Shape, share: float) -> None:
        self._places = [[rows.entry(f"{layer}.{part}") for part in PARTS] for layer in range(shape.layers)]
        self._share, self._shape = share, shape
        self._weights = [torch.zeros(shape.neurons, shape.width, dtype=torch.bfloat16) for _ in PARTS]

    def token(self, x: torch.Tensor, token: int) -> Spent:
        read_bytes, io, compute = 0, 0.0, 0.0
        for places in self._places:
            begin = time.perf_counter()
            for place, weight in zip(places, self._weights, strict=True):
                bytes_ = int(place.bytes * self._share) // 65536 * 65536
                place.file.read(place.offset, bytes_, _tensor.pointer_of(weight))
                read_bytes += bytes_
            middle = time.perf_counter()
            torch.relu(x @ self._weights[0].t()) @ self._weights[1]
            io, compute = io + middle - begin, compute + time.perf_counter() - middle
        return Spent(read_bytes, 2 * self._shape.layers, io, 0.0, 0.0, compute)


class Rows:
    """Reads rows of neurons that are wanted and not there: from a bundle, or from two matrices."""

    def __init__(
        self, weights: Weights, shape: Shape, wanted: Neurons, is_bundled: bool, keeps: bool, predicts: bool = True
    ) -> None:
        runtime, _ = runtime_for(torch.device("cpu"))
        reader = _C.RowReader(runtime)
        self._keeps, self._shape, self._wanted = keeps, shape, wanted
        # One for each layer, as a model has them: a single one would stay in the cache.
        self._predictors = [LowRankPredictor(shape.width, shape.neurons, shape.rank) for _ in range(shape.layers)]
        self._predicts = predicts
        part_bytes = shape.width * 2
        self._layers = []
        bundles = sorted(weights.bundles, key=lambda name: int(name.split(".")[0])) if is_bundled else []
        for layer in range(shape.layers):
            names = [bundles[layer]] if is_bundled else [f"{layer}.{part}" for part in PARTS]
            stores = []
            for name in names:
                place = weights.entry(name)
                stride = weights.bundles[name].stride_bytes if is_bundled else part_bytes
                parts = [(0, part_bytes), (part_bytes, part_bytes)] if is_bundled else [(0, part_bytes)]
                stores.append(_C.RowStore(
                    reader=reader, file=place.file, offset=place.offset, row_count=shape.neurons, stride_bytes=stride,
                    unit_bytes=place.unit_bytes if is_bundled else part_bytes, parts=parts,
                    capacity_rows=shape.neurons // 2, window_steps=shape.window if keeps else 1,
                ))  # fmt: skip
            self._layers.append((stores, self._views(stores)))

    def _views(self, stores: list[Any]) -> list[torch.Tensor]:
        width, capacity = self._shape.width, self._shape.neurons // 2
        if len(stores) == 1:
            whole = _tensor.tensor_over(stores[0].matrix(), torch.bfloat16, (capacity, 2 * width))
            return [whole[:, :width], whole[:, width:]]
        return [_tensor.tensor_over(store.matrix(), torch.bfloat16, (capacity, width)) for store in stores]

    def token(self, x: torch.Tensor, token: int) -> Spent:
        before = self._counts()
        prediction, compute = 0.0, 0.0
        for layer, (stores, (up, down)) in enumerate(self._layers):
            begin = time.perf_counter()
            if self._predicts:
                self._predictors[layer](x).nonzero()
            prediction += time.perf_counter() - begin
            ids = self._wanted.of(layer, token)
            rows = torch.empty_like(ids)
            for store in stores:
                if not self._keeps:
                    store.clear()
                store.step(_tensor.pointer_of(ids), ids.numel(), _tensor.pointer_of(rows))
            begin = time.perf_counter()
            count = stores[0].resident_count
            torch.relu(x @ up[:count].t()) @ down[:count]
            compute += time.perf_counter() - begin
        spent = [after - now for now, after in zip(before, self._counts(), strict=True)]
        return Spent(spent[0], spent[1], spent[2] / 1e6, spent[3] / 1e6, prediction, compute)

    def _counts(self) -> list[int]:
        stats = [store.stats() for stores, _ in self._layers for store in stores]
        return [sum(one[key] for one in stats) for key in ("read_bytes", "read_count", "io_us", "management_us")]


def rungs(packed: Weights, rows: Weights, shape: Shape, trace: Trace) -> dict[str, Any]:
    return {
        "naive": Dense(rows, shape, 1.0),
        "hybrid": Dense(rows, shape, 0.5),
        "+predictor": Rows(rows, shape, trace.predicted, is_bundled=False, keeps=False),
        "+window": Rows(rows, shape, trace.predicted, is_bundled=False, keeps=True),
        "+bundle": Rows(packed, shape, trace.predicted, is_bundled=True, keeps=True),
        "exact": Rows(packed, shape, trace.active, is_bundled=True, keeps=True, predicts=False),
    }


def measure(shape: Shape, trace_path: Path, tokens: int, warm_up: int, folder: str) -> dict[str, Any]:
    """Medians of each rung over `tokens` tokens that follow `warm_up` ones."""
    trace = Trace(trace_path, shape.neurons)
    shape = shape._replace(neurons=trace.neurons)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        ladder = rungs(*write_files(inside, shape), shape, trace)
        x = torch.randn(1, shape.width, dtype=torch.bfloat16)
        spent: dict[str, list[Spent]] = {name: [] for name in ladder}
        for token in range(warm_up + tokens):
            names = list(ladder) if token % 2 == 0 else list(reversed(ladder))
            for name in names:
                if token < warm_up and name in ("naive", "hybrid"):
                    continue  # they keep nothing from one token for the next
                found = ladder[name].token(x, token)
                if token >= warm_up:
                    spent[name].append(found)
    results = {name: {key: statistics.median(getattr(one, key) for one in found) for key in Spent._fields}
               for name, found in spent.items()}  # fmt: skip
    return {"machine": machine(), "shape": shape._asdict(), "active_share": trace.active.share(),
            "predicted_share": trace.predicted.share(), "missed_share": trace.missed_share(),
            "trace_neurons": trace.active.own_neurons, "tokens": tokens, "rungs": results}  # fmt: skip


def total_s(rung: dict[str, float]) -> float:
    return rung["io_s"] + rung["management_s"] + rung["prediction_s"] + rung["compute_s"]


def rows_of(measured: dict[str, Any]) -> Iterator[list[str]]:
    found = measured["rungs"]
    for name, one in found.items():
        rate = one["read_bytes"] / one["io_s"] if one["io_s"] else 0.0
        yield [name, format_bytes(one["read_bytes"]), format_bytes(one["read_bytes"] / max(1, one["read_count"])),
               f"{rate / 1e9:.2f} GB/s", *(f"{1e3 * one[key]:.1f} ms" for key in SECONDS),
               f"{1e3 * total_s(one):.1f} ms", f"{total_s(found['naive']) / total_s(one):.1f}x",
               f"{total_s(found['hybrid']) / total_s(one):.1f}x"]  # fmt: skip


def test_ladder(benchmark, capsys, tmp_path: Path) -> None:
    """Each rung reads less than the one before; the bundle needs fewer reads."""
    generator = np.random.default_rng(0)
    active = torch.from_numpy(generator.random((2, 12, 64)) < 0.06)
    predicted = active | torch.from_numpy(generator.random((2, 12, 64)) < 0.04)
    predicted[:, :, 0] = False
    (ids, offsets), (predicted_ids, predicted_offsets) = ragged(active), ragged(predicted)
    np.savez(tmp_path / "trace.npz", ids=ids, offsets=offsets, neurons=64, rank=8, predicted_ids=predicted_ids,
             predicted_offsets=predicted_offsets)  # fmt: skip
    shape = Shape(layers=2, neurons=256, width=2048, window=4, rank=16)
    arguments = (shape, tmp_path / "trace.npz", 6, 6, str(tmp_path))
    measured = benchmark.pedantic(measure, args=arguments, rounds=1, iterations=1)
    shown.show(capsys, plain_table("ladder", COLUMNS, list(rows_of(measured))), "(smoke size: figures mean nothing)")
    read = [one["read_bytes"] for one in measured["rungs"].values()]
    assert read[0] > read[1] > read[2] > read[3] > 0
    assert read[4] <= read[3] * 1.3
    assert 0 < read[5] < read[2]
    assert measured["missed_share"] == active[:, :, 0].sum().item() / active.sum().item()
    assert measured["rungs"]["+bundle"]["read_count"] < measured["rungs"]["+window"]["read_count"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    for name, default in (
        ("layers", 4),
        ("neurons", 8192),
        ("width", 2048),
        ("window", 4),
        ("rank", 128),
        ("tokens", 20),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", default=default_spill_dir(), help="for the files: on a disk, not in memory")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = Shape(options.layers, options.neurons, options.width, options.window, options.rank)
    measured = measure(shape, options.trace, options.tokens, 4 * options.window, options.folder)
    title = (f"{shape.layers} layers of {shape.neurons} neurons, width {shape.width}, 2 bytes; "
             f"of a token, {measured['active_share']:.1%} of the neurons are active, "
             f"{measured['predicted_share']:.1%} predicted; {measured['missed_share']:.1%} are missed")  # fmt: skip
    print(plain_table(title, COLUMNS, list(rows_of(measured))), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
