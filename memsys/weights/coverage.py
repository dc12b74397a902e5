"""Would keeping a window of rows pay for this model and these batches? Measured, predicted, advised.

A ReLU FFN needs only the weights of its active neurons. One token of a sparse network uses few; a batch of many tokens
uses nearly all of them together, and then a window over layers is what saves reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from memsys.budget import parse_budget
from memsys.errors import InputError
from memsys.weights.activity import ActivityCounter
from memsys.weights.cost import Rates
from memsys.weights.forecast import FULL_UNION, FfnCoverage, Prediction, known_windows, predict_step, predict_token
from memsys.weights.relu_probe import Ffn, linear_layers, probe

WINDOWS = (1, 2, 4, 5, 8, 16)
_reports: WeakKeyDictionary[nn.Module, CoverageReport] = WeakKeyDictionary()


@dataclass(frozen=True)
class Advice:
    """One of "rows", "layers" and "resident", and why."""

    way: str
    reason: str


@dataclass(frozen=True)
class CoverageReport:
    """What was measured of each ReLU FFN (none: `ffns` is empty), what each way to serve them would read for a token
    that is generated and for a training step, and which way is advised for either. `advice` is that of the two which
    the measured batches are like: generation if most calls were of one token."""

    ffns: tuple[FfnCoverage, ...]
    linear_count: int
    budget_bytes: int
    token_predictions: tuple[Prediction, ...]
    step_predictions: tuple[Prediction, ...]
    generation: Advice
    training: Advice

    @property
    def advice(self) -> Advice:
        is_generation = bool(self.ffns) and _mean(self.ffns, "single_token_share") > 0.5
        return self.generation if is_generation else self.training

    @property
    def union_share(self) -> float:
        """C: the share of all neurons that the tokens of one batch use together."""
        return _mean(self.ffns, "union_share")

    @property
    def active_share(self) -> float:
        """The share of all neurons that one token uses."""
        return _mean(self.ffns, "active_share")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "advice": asdict(self.advice), "union_share": self.union_share,
                "active_share": self.active_share}  # fmt: skip

    def __str__(self) -> str:
        lines = []
        if self.ffns:
            windows = list(self.ffns[0].used_share)
            lines.append(f"{'FFN, % of its neurons':<34}{'a token':>9}" + "".join(f"{f'in {k}':>8}" for k in windows)
                         + f"{'batch':>8}{'tokens':>8}")  # fmt: skip
            for ffn in self.ffns:
                shares = [ffn.active_share, *ffn.used_share.values(), ffn.union_share]
                texts = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
                lines.append(f"{ffn.down:<34}{texts[0]:>9}" + "".join(f"{text:>8}" for text in texts[1:])
                             + f"{ffn.batch_tokens:>8.0f}")  # fmt: skip
                news = ["-" if share is None else f"{100 * share:.1f}" for share in ffn.new_share.values()]
                lines.append(f"{'  new beyond them':<43}" + "".join(f"{text:>8}" for text in news))
            lines.append(f"with {_size(self.budget_bytes)} for FFN weights of "
                         f"{_size(sum(ffn.dense_bytes for ffn in self.ffns))}:")  # fmt: skip
            for what, predictions in (("token", self.token_predictions), ("step", self.step_predictions)):
                lines += [_line(what, one) for one in predictions]
        for what, advice in (("to generate", self.generation), ("to train", self.training)):
            lines.append(f"{what}: {advice.way}, because {advice.reason}")
        return "\n".join(lines)


def coverage(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    run: Callable[[Any], object] | None = None,
    windows: Sequence[int] = WINDOWS,
    ffn_budget: int | str = "50%",
    rates: Rates | str | os.PathLike[str] | None = None,
) -> CoverageReport:
    """Runs the batches, measures how many neurons of each ReLU FFN they use, and advises how to serve its weights.

    Args:
        model: any module; its ReLU FFNs are found by what they compute, in eval mode and without gradients.
        batches: a tensor or other value is the model's argument, a tuple its arguments, a mapping its keywords.
            Padding counts as tokens. In a call of (sequences, tokens, width) each sequence has windows of its own;
            calls of one token go on with the sequences of the call before, as generation does.
        run: what to call with a batch instead of the model, for instance `lambda batch: model.generate(batch)`.
        windows: how many tokens in a row to count the used neurons of.
        ffn_budget: what may stay in memory of FFN weights: bytes, "2GiB", or a share of their size ("50%").
        rates: what memsys.weights.calibrate.calibrate measured, or a file or folder to measure (some seconds); without,
            bytes are compared, and no times predicted.

    Source: Alizadeh et al., "LLM in a flash", ACL 2024, sections 3.1 and 4. Raises InputError for no batch or a window
    below 1, and whatever the model raises.
    """
    windows = tuple(dict.fromkeys(windows))
    if not windows or any(not isinstance(k, int) or k < 1 for k in windows):
        raise InputError(f"coverage: windows count tokens from 1 on, found {windows}; try (1, 2, 4, 8)")
    if rates is not None and not isinstance(rates, Rates):
        from memsys.weights.calibrate import calibrate

        rates = calibrate(rates)
    counters: dict[Ffn, ActivityCounter] = {}

    def note(ffn: Ffn, active: Tensor) -> None:
        if ffn not in counters:
            counters[ffn] = ActivityCounter(active.shape[-1], windows)
        counters[ffn].add(active.reshape(-1, *active.shape[-2:]))

    count = 0
    with torch.no_grad(), _evaluating(model), probe(model, note):
        for batch in batches:
            count += 1
            _call(model, batch, run)
            for counter in counters.values():
                counter.end_batch()
    if not count:
        raise InputError("coverage: wanted at least one batch, found none; give the batches that the model will see")
    layers = linear_layers(model)
    report = report_of(tuple(_measured(ffn, layers, counter) for ffn, counter in counters.items()), len(layers),
                       ffn_budget, rates)  # fmt: skip
    _reports[model] = report
    return report


def last_report(model: nn.Module) -> CoverageReport | None:
    """What coverage last said of this model; memsys.stream(policy="auto") follows it."""
    return _reports.get(model)


def report_of(
    ffns: tuple[FfnCoverage, ...], linear_count: int, ffn_budget: int | str = "50%", rates: Rates | None = None
) -> CoverageReport:
    """Predictions and advice from measured FFNs; `linear_count`: of how many linear layers they were found among."""
    total = sum(ffn.dense_bytes for ffn in ffns)
    budget = parse_budget(ffn_budget, lambda: total)
    if not ffns:
        none = Advice("layers", f"no FFN with ReLU was found among {linear_count} linear layers: without exact zeros "
                                "no row can be left out, and a window over layers is what saves reads")  # fmt: skip
        return CoverageReport((), linear_count, budget, (), (), none, none)
    tokens, steps = predict_token(ffns, budget, rates), predict_step(ffns, budget, rates)
    return CoverageReport(ffns, linear_count, budget, tuple(tokens), tuple(steps), _advise_generation(ffns, tokens),
                          _advise_training(ffns, steps))  # fmt: skip


def _advise_generation(ffns: Sequence[FfnCoverage], predictions: Sequence[Prediction]) -> Advice:
    ways = {one.way: one for one in predictions}
    if "resident" in ways:
        return Advice("resident", "all FFN weights fit the budget")
    rows, layers = ways.get("rows"), ways.get("layers")
    if rows is None:
        if not known_windows(ffns):
            return Advice("layers", "no sequence was longer than a window, so that none was measured; give longer ones")
        guess = ways.get("rows, predicted")
        instead = "" if guess is None else (f"; a trained predictor in their place would read {_figures(guess)} a "
                                            "token, and miss some neurons")  # fmt: skip
        return Advice("layers", "the projections that tell exactly which neurons are active and a window's rows do "
                                f"not fit the budget{instead}")  # fmt: skip
    if layers is not None and not rows.is_better(layers):
        return Advice("layers", f"a token's new rows, {_figures(rows)}, are no less than its layers, "
                                f"{_figures(layers)}")  # fmt: skip
    instead = "" if layers is None else f" instead of {_figures(layers)} for layers"
    return Advice("rows", f"a token reads {_figures(rows)}{instead}, with the rows of the last {rows.window} tokens "
                          "kept and the predicting projection resident")  # fmt: skip


def _advise_training(ffns: Sequence[FfnCoverage], predictions: Sequence[Prediction]) -> Advice:
    ways = {one.way: one for one in predictions}
    share, tokens = _mean(ffns, "union_share"), _mean(ffns, "batch_tokens")
    if "resident" in ways:
        return Advice("resident", "all FFN weights fit the budget")
    union = f"{tokens:.0f} tokens of a batch use {share:.1%} of the neurons together"
    if share >= FULL_UNION:
        return Advice("layers", f"{union}, at least {FULL_UNION:.0%}: rows do not cut the reads of a batched step, "
                                "a window over layers does")  # fmt: skip
    if "rows" not in ways:
        return Advice("layers", f"{union}, but the masked backward needs an ungated ReLU and a window of at least one "
                                "layer")  # fmt: skip
    rows, layers = ways["rows"], ways["layers"]
    if not rows.is_better(layers):
        return Advice("layers", f"{union}, and a step reads {_figures(rows)} with rows, {_figures(layers)} without")
    return Advice("rows", f"{union}: with a masked backward a step reads {_figures(rows)} instead of "
                          f"{_figures(layers)}")  # fmt: skip


def _measured(ffn: Ffn, layers: Mapping[str, nn.Module], counter: ActivityCounter) -> FfnCoverage:
    def row_bytes(name: str) -> int:
        weights = [weight for weight in layers[name].parameters() if weight.dim() == 2] if name else []
        return max((weight.nbytes for weight in weights), default=0) // counter.neurons

    unions = counter.unions or [(0, 0.0)]
    return FfnCoverage(
        *ffn,
        neurons=counter.neurons,
        up_bytes=row_bytes(ffn.up),
        gate_bytes=row_bytes(ffn.gate),
        down_bytes=row_bytes(ffn.down),
        token_count=counter.token_count,
        active_share=counter.active_share,
        used_share={k: counter.used_share(k) for k in counter.windows},
        new_share={k: counter.new_share(k) for k in counter.windows},
        union_share=sum(share for _, share in unions) / len(unions),
        batch_tokens=sum(tokens for tokens, _ in unions) / len(unions),
        single_token_share=counter.single_token_call_count / counter.call_count,
    )


def _call(model: nn.Module, batch: Any, run: Callable[[Any], object] | None) -> None:
    if run is not None:
        run(batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    else:
        model(batch)


@contextmanager
def _evaluating(model: nn.Module):
    """Inside, every module is in eval mode (dropout would hide what is ReLU); then each is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _mean(ffns: Sequence[FfnCoverage], name: str) -> float:
    neurons = sum(ffn.neurons for ffn in ffns)
    return sum(getattr(ffn, name) * ffn.neurons for ffn in ffns) / neurons if neurons else 0.0


def _figures(one: Prediction) -> str:
    return _size(one.read_bytes) + ("" if one.io_s is None else f" in {one.io_s * 1e3:.3g} ms")


def _line(what: str, one: Prediction) -> str:
    window = f"{one.window} {'tokens' if one.way.startswith('rows') and what == 'token' else 'layers'}"
    return f"  a {what}, {one.way} ({window}, {_size(one.resident_bytes)} kept): reads {_figures(one)}"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.2f} MiB" if size_bytes < 1 << 30 else f"{size_bytes / 2**30:.2f} GiB"
