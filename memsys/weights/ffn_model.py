"""Puts windowed networks into a model: `windowed_ffn(model, path)`, for ReLU networks that the file has bundles of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from memsys.errors import InputError, UnsupportedError
from memsys.weights.checked import Weights, open_weights
from memsys.weights.ffn_parts import WindowedDown, WindowedUp, join
from memsys.weights.ffn_rows import BundlePlace, KeepRule, RowPool, StreamedRows


class _Network(NamedTuple):
    """A network of the model: its bundle, the modules that are replaced, by part, and the gate that stays."""

    place: BundlePlace
    names: dict[str, str]
    modules: dict[str, nn.Module]
    gate: nn.Module | None


def windowed_ffn(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    layout: str = "zero_filled",
    policy: str = "window",
    window_tokens: int = 4,
    hot: Mapping[str, Sequence[int]] | None = None,
    capacity_rows: int | None = None,
    device_budget: int | str | None = None,
    verify: str = "first",
) -> nn.Module:
    """Streams the rows of every ReLU network of `model` that the packed file at `path` has a bundle of.

    The projections whose rows are streamed (down; in a gated network also up) are replaced, and their memory is free;
    the rest stays as it is, the resident projection among it, and the model's own code runs. Keywords as WindowedFFN
    has them; `hot` by the name of the bundle. All networks share one budget, and each keeps as many rows.

    Returns the model. Raises InputError, naming the tensor, for modules that are not there or not as the file has them,
    and what WindowedFFN raises; then nothing has changed.
    """
    weights = open_weights(path, verify)
    if not weights.bundles:
        raise InputError(f"{weights.path}: wanted bundles of ReLU networks, found none; pack the model with "
                         "bundle_ffn=True, or use memsys.stream")  # fmt: skip
    networks = {name: _network_of(model, weights, name) for name in weights.bundles}
    unknown = set(hot or {}) - set(networks)
    if unknown:
        raise InputError(
            f"hot: wanted names of bundles, such as {next(iter(networks))!r}, found {sorted(unknown)[0]!r}"
        )
    places = [one.place for one in networks.values()]
    pool = RowPool(device_budget=device_budget, max_row_bytes=max(place.stride_bytes for place in places))
    if layout == "zero_filled":
        for one in networks.values():
            for part, module in one.modules.items():
                pool.scratch(part, one.place, is_by_row(module, part))
    if capacity_rows is None:
        capacity_rows = pool.capacity_for(places, max(len(one.modules) for one in networks.values()))
    built = []
    for name, one in networks.items():
        rule = KeepRule(policy, window_tokens, tuple((hot or {}).get(name, ())))
        rows = StreamedRows(pool, one.place, tuple(one.modules), capacity_rows=capacity_rows, rule=rule)
        built.append((one, *_build(rows, one, layout)))
    for one, up, down in built:
        _install(model, one, up, down)
    return model


def _network_of(model: nn.Module, weights: Weights, name: str) -> _Network:
    bundle, place = weights.bundles[name], BundlePlace.of(weights, name)
    found = {part: _module_of(model, place, bundle.tensors[part], part) for part in bundle.parts}
    gate = found.get("gate")
    if (gate or found["up"]).weight.is_meta:
        raise InputError(f"{bundle.tensors['gate' if gate else 'up']}: wanted the projection that stays, found it on "
                         "meta; load it before the rows of its network are streamed")  # fmt: skip
    streamed = ("up", "down") if gate else ("down",)
    return _Network(place, dict(bundle.tensors), {part: found[part] for part in streamed}, gate)


def _module_of(model: nn.Module, place: BundlePlace, name: str, part: str) -> nn.Module:
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if last != "weight" or not (type(module) is nn.Linear or is_conv1d(module)):
        raise InputError(f"{name}: wanted a Linear or Conv1D of that name in the model, found {type(module).__name__}; "
                         "stream the rows of the model that was packed, before it is wrapped")  # fmt: skip
    shape = place.dense_shape(is_by_row(module, part))
    if tuple(module.weight.shape) != shape or module.weight.dtype is not place.dtype:
        raise InputError(f"{name}: wanted {list(shape)} of {place.dtype}, as the file has it, found "
                         f"{list(module.weight.shape)} of {module.weight.dtype}; convert the model, or pack it "
                         "again")  # fmt: skip
    return module


def is_conv1d(module: nn.Module | None) -> bool:
    """Whether this is transformers' Conv1D, whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_by_row(module: nn.Module, part: str) -> bool:
    """Whether a neuron is a row of the module's weight: in a Linear's up and gate, and in a Conv1D's down."""
    return (part == "down") == is_conv1d(module)


def _build(rows: StreamedRows, one: _Network, layout: str) -> tuple[WindowedUp | None, WindowedDown]:
    def options(part: str) -> dict[str, object]:
        module = one.modules[part]
        return {"layout": layout, "bias": module.bias, "is_by_row": is_by_row(module, part),
                "is_conv1d": is_conv1d(module), "name": one.names[part].removesuffix(".weight")}  # fmt: skip

    up = WindowedUp(rows, **options("up")) if "up" in one.modules else None
    down = WindowedDown(rows, gated=up, **options("down"))
    join(up, down)
    return up, down


def _install(model: nn.Module, one: _Network, up: WindowedUp | None, down: WindowedDown) -> None:
    for part, new in (("up", up), ("down", down)):
        if new is not None:
            new.train(one.modules[part].training)
            model.set_submodule(one.names[part].removesuffix(".weight"), new)
    if up is not None:
        one.gate.register_forward_hook(lambda module, args, output: up.note_gate(output))


def ffn_stats(model: nn.Module) -> dict[str, int]:
    """What the stores of all windowed networks of `model` count, summed. Raises UnsupportedError if there is none."""
    stores = [module.rows for module in model.modules() if isinstance(module, WindowedDown)]
    if not stores:
        raise UnsupportedError("ffn_stats: wanted a model with windowed networks, found none; call windowed_ffn on it")
    totals: dict[str, int] = {}
    for rows in stores:
        for key, value in rows.stats().items():
            totals[key] = totals.get(key, 0) + value
    return totals
