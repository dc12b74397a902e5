"""How well does a low-rank predictor know the active neurons of a sparse ReLU GPT, and what does it ask for?

After "LLM in a flash" (arXiv 2312.11514, section 3.1), with memsys.weights.predictor: one predictor a layer, trained on
the text that the model was trained on, measured on text that neither has seen, and added to the model's trace:

    python benchmarks/train_relu_gpt.py --save relu-gpt.safetensors --trace relu-gpt-trace.npz
    python benchmarks/train_predictors.py --model relu-gpt.safetensors --trace relu-gpt-trace.npz

The trace then also holds `predicted_ids` and `predicted_offsets`, laid out as `ids` and `offsets`, and the predictors'
`rank`. Each threshold is the largest that misses at most `--misses` of the active neurons of training text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shown
import torch
from torch import Tensor
from train_relu_gpt import ReluGPT, Setting, Text, load, ragged, split, trace, train

from memsys.cli.console import plain_table
from memsys.weights.predictor import LowRankPredictor, PredictorReport, measure, record_activity, train_predictor

COLUMNS = ("layer", "threshold", "active", "predicted", "missed", "false alarms")
THRESHOLDS = [step / 100 for step in range(2, 99)]


class Training(NamedTuple):
    """`sequences` of training text, seen `epochs` times; `misses`: the share of active neurons that may be missed."""

    rank: int = 32
    sequences: int = 64
    epochs: int = 6
    misses: float = 0.05


@torch.no_grad()
def activity(model: ReluGPT, layer: int, batches: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(inputs, active neurons) of one layer's FFN, a batch of tokens at a time."""
    return [record_activity(model.blocks[layer].mlp.up_proj, lambda tokens=tokens: model(tokens)) for tokens in batches]


def train_one(model: ReluGPT, layer: int, batches: list[Tensor], training: Training) -> LowRankPredictor:
    torch.manual_seed(layer)
    setting = model.setting
    predictor = LowRankPredictor(setting.width, setting.hidden, training.rank)
    seen = activity(model, layer, batches)
    train_predictor(predictor, seen, epochs=training.epochs)
    predictor.threshold = threshold_for(predictor, seen[: max(1, len(seen) // 8)], training.misses)
    return predictor


def threshold_for(predictor: LowRankPredictor, batches: list[tuple[Tensor, Tensor]], misses: float) -> float:
    """The largest of THRESHOLDS at which at most that share of the active neurons is missed; else the least."""
    with torch.no_grad():
        scores = torch.cat([torch.sigmoid(predictor.scores(x))[active] for x, active in batches]).sort().values
    allowed = scores[min(int(misses * scores.numel()), scores.numel() - 1)].item() if scores.numel() else 0.5
    return max((step for step in THRESHOLDS if step < allowed), default=THRESHOLDS[0])


@torch.no_grad()
def predicted_trace(model: ReluGPT, predictors: list[LowRankPredictor], text: Text, tokens: int) -> dict[str, Any]:
    """What the predictors ask for, of the tokens that `trace` records, laid out as it does."""
    seq, parts = model.setting.seq, []
    batches = [text.content[begin : min(begin + seq, tokens)].long()[None] for begin in range(0, tokens, seq)]
    for layer, predictor in enumerate(predictors):
        parts.append(torch.cat([predictor(x) for x, _ in activity(model, layer, batches)]))
    ids, offsets = ragged(torch.stack(parts))
    return {"predicted_ids": ids, "predicted_offsets": offsets, "rank": np.array(predictors[0].inner.out_features)}


def train_all(model: ReluGPT, text: Text, training: Training) -> list[LowRankPredictor]:
    setting = model.setting
    batches = [text.batch(step, 1, setting.seq, setting.seed + 2)[0] for step in range(training.sequences)]
    return [train_one(model, layer, batches, training) for layer in range(setting.layers)]


def measure_all(
    model: ReluGPT, predictors: list[LowRankPredictor], held_out: Text, sequences: int
) -> list[PredictorReport]:
    setting = model.setting
    batches = [held_out.batch(step, 1, setting.seq, setting.seed + 3)[0] for step in range(sequences)]
    return [measure(predictor, activity(model, layer, batches)) for layer, predictor in enumerate(predictors)]


def table(predictors: list[LowRankPredictor], reports: list[PredictorReport], training: Training) -> str:
    rows = [[str(layer), f"{predictor.threshold:.2f}", f"{one.active_share:.2%}", f"{one.predicted_share:.2%}",
             f"{one.false_negative_rate:.1%}", f"{one.false_positive_rate:.1%}"]
            for layer, (predictor, one) in enumerate(zip(predictors, reports, strict=True))]  # fmt: skip
    return plain_table(f"predictors of rank {training.rank}, on held-out text", COLUMNS, rows)


def test_predictors(benchmark, capsys, tmp_path: Path) -> None:
    """They miss less than chance would at the share that they ask for, and the trace holds what they ask for."""
    training_text, held_out = split(Text.load())
    model = train(Setting(layers=2, width=64, hidden=128, seq=32, batch=2, steps=4), training_text)
    training = Training(rank=16, sequences=16, epochs=8, misses=0.1)
    predictors = benchmark.pedantic(train_all, args=(model, training_text, training), rounds=1, iterations=1)
    reports = measure_all(model, predictors, held_out, 2)
    shown.show(capsys, table(predictors, reports, training), "(smoke size: figures mean nothing)")
    for one in reports:
        assert one.recall > one.predicted_share
    actual, found = trace(model, held_out, 40), predicted_trace(model, predictors, held_out, 40)
    assert found["predicted_offsets"].shape == actual["offsets"].shape
    begin, end = found["predicted_offsets"][1, 39:41]
    tokens = held_out.content[32:40].long()[None]
    wanted = predictors[1](activity(model, 1, [tokens])[0][0])[7]
    assert found["predicted_ids"][begin:end].tolist() == wanted.nonzero().flatten().tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="as train_relu_gpt.py saved it")
    parser.add_argument("--trace", type=Path, required=True, help="of that model; rewritten with what is predicted")
    parser.add_argument("--data", metavar="FILE", help="the text, as there")
    for name, default in Training()._asdict().items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    training = Training(options.rank, options.sequences, options.epochs, options.misses)
    model, (training_text, held_out) = load(options.model), split(Text.load(options.data))
    predictors = train_all(model, training_text, training)
    reports = measure_all(model, predictors, held_out, 8)
    print(table(predictors, reports, training), flush=True)
    with np.load(options.trace) as file:
        found = dict(file)
    token_count = found["offsets"].shape[1] - 1
    np.savez_compressed(options.trace, **found | predicted_trace(model, predictors, held_out, token_count))
    if options.json is not None:
        layers = [one._asdict() | {"threshold": each.threshold} for one, each in zip(reports, predictors, strict=True)]
        options.json.write_text(json.dumps({"training": training._asdict(), "layers": layers}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
