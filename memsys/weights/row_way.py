"""memsys.stream by rows: the rows of ReLU networks stream, everything else the file holds is read and stays."""

from __future__ import annotations

import torch

from memsys.errors import InputError, UnsupportedError
from memsys.weights.checked import open_weights
from memsys.weights.ffn_model import windowed_ffn
from memsys.weights.resident import fill_resident


class StreamedByRows:
    """What is left on a model whose networks were replaced."""

    def stats(self) -> object:
        raise InputError("stream_stats: this model streams rows and not layers; call memsys.ffn_stats(model)")

    def restore(self) -> None:
        raise UnsupportedError("restore: the networks of this model were replaced to stream their rows; make the model "
                               "again from its file")  # fmt: skip


def stream_rows(model: torch.nn.Module, path: str, device_budget: int | str, verify: str) -> StreamedByRows:
    """Fills the model from the file, but for the projections whose rows stream, and replaces those.

    Raises InputError for a file without bundles of ReLU networks.
    """
    weights = open_weights(path, verify)
    if not weights.bundles:
        raise InputError(f"stream: {path}: wanted bundles of ReLU networks for policy='rows', found none; pack the "
                         "model with bundle_ffn=True, or use policy='layers'")  # fmt: skip
    parameters = dict(model.named_parameters(remove_duplicate=False))
    streamed = set()
    for bundle in weights.bundles.values():
        for part in ("up", "down") if "gate" in bundle.parts else ("down",):
            name = bundle.tensors[part]
            if name not in parameters:
                raise InputError(f"stream: the file bundles {name}, found no such parameter in the model; stream the "
                                 "model that was packed")  # fmt: skip
            streamed.add(id(parameters[name]))
    fill_resident(model, streamed, {*weights.names(), *weights.aliases}, weights.read)
    windowed_ffn(model, path, device_budget=device_budget, verify=verify)
    return StreamedByRows()
