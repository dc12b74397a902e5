"""The closed forms of "MEMO" (Zhao et al., SIGMOD 2025, section 4.1), for any shape and machine.

MEMO swaps layer input and attention output whole, of everything else the first alpha of the rows, and recomputes the
others just before a layer's backward. The last two layers stay. A forward hides a layer's transfer, and the host holds
all of them:

    max alpha  s.t.  (S_must + alpha S_others) / B <= T_layer  and  (n - 2)(S_must + alpha S_others) <= M_host
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memsys.planning.compute import ComputeModel, Load
from memsys.planning.decoder import ATTENTION_OUTPUT, LAYER_INPUT
from memsys.planning.hardware import Rates
from memsys.planning.shapes import ModelShape

KEPT_LAYERS = 2


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer on one GPU: what always moves, and what is divided by rows."""

    must: int
    others: int

    @property
    def total(self) -> int:
        return self.must + self.others


def layer_bytes(model: ComputeModel) -> LayerBytes:
    """What one layer saves on one GPU."""
    sizes = {tensor.name: tensor.token_bytes * model.load.tokens // model.load.parallel
             for tensor in model.layer.tensors}  # fmt: skip
    must = sizes[LAYER_INPUT] + sizes[ATTENTION_OUTPUT]
    return LayerBytes(must, sum(sizes.values()) - must)


def skeletal_bytes(shape: ModelShape, seq: int, batch: int = 1) -> int:
    """What all layers of the model save, over all GPUs."""
    return shape.layers * layer_bytes(ComputeModel(shape, _ANY, Load(seq, batch))).total


def alpha_by_link(model: ComputeModel, out_rate: float) -> float:
    """The first bound on alpha, not clamped: what a layer's forward hides at `out_rate` bytes a second."""
    sizes = layer_bytes(model)
    return (out_rate * model.layer_times().forward_us / 1e6 - sizes.must) / sizes.others


def alpha_by_host(model: ComputeModel, host_bytes: float) -> float:
    """The second bound, not clamped: what one GPU's part of the host's memory holds."""
    sizes = layer_bytes(model)
    return (host_bytes / max(1, model.shape.layers - KEPT_LAYERS) - sizes.must) / sizes.others


def alpha(model: ComputeModel, out_rate: float, host_bytes: float | None = None) -> float:
    """The share of rows to swap, in [0, 1]. host_bytes: one GPU's part of the host's memory; None: no bound."""
    bounds = [1.0, alpha_by_link(model, out_rate)]
    if host_bytes is not None:
        bounds.append(alpha_by_host(model, host_bytes))
    return max(0.0, min(bounds))


def crossover_seq(shape: ModelShape, rates: Rates, parallel: int = 1, out_rate: float | None = None) -> float:
    """The sequence length from which a layer's forward hides the swap of all that it saves (alpha = 1 by the link).

    The forward takes `linear · s + square · s²`, the transfer `bytes · s / B`, so s = (bytes / B - linear) / square;
    0 where any length hides it. With one achieved rate F for everything, no memory-bound operation and no collective
    this is m·F/B - P/h (P: matrix elements of a layer, m: saved elements of a token in units of h, two bytes each).
    """
    linear, square = _forward_terms(shape, rates, parallel)
    out_rate = out_rate if out_rate is not None else _host_rate(rates)
    moved_us = ComputeModel(shape, rates, Load(1)).layer.token_bytes / parallel / out_rate * 1e6
    return max(0.0, (moved_us - linear) / square)


def crossover_rate(shape: ModelShape, rates: Rates, seq: float, parallel: int = 1) -> float:
    """The link rate at which `seq` is the crossover: the inverse of `crossover_seq`."""
    linear, square = _forward_terms(shape, rates, parallel)
    token_bytes = ComputeModel(shape, rates, Load(1)).layer.token_bytes
    return token_bytes / parallel / (linear + square * seq) * 1e6


def _forward_terms(shape: ModelShape, rates: Rates, parallel: int) -> tuple[float, float]:
    """(microseconds of a token, of a token and a position) in one layer's forward on one GPU."""
    times = ComputeModel(shape, rates, Load(1, 1, parallel)).layer_times()
    return times.forward_us - times.attention_us, times.attention_us


def _host_rate(rates: Rates) -> float:
    return rates.host.out_rate if rates.host is not None else rates.file.out_rate


@dataclass(frozen=True)
class StepTimes:
    """Microseconds of one step by the closed forms, with nothing but the layers' own bounds: each policy's forward and
    backward of the layers that move, where a transfer that a layer's time does not hide holds the next one up."""

    full_swap: float
    full_recompute: float
    token_wise: float
    alpha: float


def step_times(model: ComputeModel, host_bytes: float | None = None) -> StepTimes:
    """Full swap, full recompute (all layers but their input computed again) and token-wise, one layer after another.

    Head and optimizer are not in it. Full swap is infinite where the host can't hold it.
    """
    times, sizes, count = model.layer_times(), layer_bytes(model), model.shape.layers
    link = model.rates.host
    moving = max(0, count - KEPT_LAYERS)
    share = alpha(model, link.out_rate, host_bytes)

    def moved(size: float, extra_us: float) -> float:
        forward = max(times.forward_us, size / link.out_rate * 1e6)
        backward = max(times.backward_us + extra_us, size / link.in_rate * 1e6)
        return moving * (forward + backward) + (count - moving) * (times.forward_us + times.backward_us)

    fits = host_bytes is None or moving * sizes.total <= host_bytes
    return StepTimes(
        full_swap=moved(sizes.total, 0.0) if fits else float("inf"),
        full_recompute=count * (2 * times.forward_us + times.backward_us),
        token_wise=moved(sizes.must + share * sizes.others, (1 - share) * times.remake_us),
        alpha=share,
    )


def recompute_ratio(model: ComputeModel) -> float:
    """How much longer a layer takes when its forward runs twice: 1 + F / (F + B)."""
    times = model.layer_times()
    return 1 + times.forward_us / (times.forward_us + times.backward_us)


def at_link(rates: Rates, out_rate: float, in_rate: float | None = None) -> Rates:
    """The same machine with another link."""
    link = replace(rates.host, out_rate=out_rate, in_rate=in_rate or out_rate, both_rate=None)
    return replace(rates, host=link)


# For what depends on no rate.
_ANY = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, None)
