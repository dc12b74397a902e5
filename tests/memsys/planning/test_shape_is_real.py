"""A shape's saved bytes and parameters against the real module that it describes, counted by autograd's own hooks."""

from __future__ import annotations

import pytest
import torch

from memsys.cli.gpt import GPT, GPTShape, parameter_count
from memsys.planning.compute import ComputeModel, Load
from memsys.planning.gpus import find_machine
from memsys.planning.shapes import SHAPES
from memsys.planning.synthetic import synthetic_trace

SEQ = 512


def saved_bytes(model: GPT, seq: int) -> int:
    """Bytes of the distinct storages that a forward saves, parameters left out."""
    sizes: dict[object, int] = {}
    kept = []
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    tokens = torch.randint(256, (1, seq))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, tokens)
    return sum(sizes.values())


def test_the_shape_of_train_is_its_model() -> None:
    shape = SHAPES["gpt-train"]
    model = GPT(GPTShape(layers=shape.layers, width=shape.hidden, seq=SEQ))
    # Biases, norms and positions are the rest.
    assert parameter_count(model) == pytest.approx(shape.parameters, rel=0.03)
    trace = synthetic_trace(ComputeModel(shape, find_machine("a100").rates(), Load(SEQ)))
    # The real one saves in fp32, log-sums of attention and statistics of norms as well, and its loss is not in chunks.
    loss = SEQ * 256 * 4
    assert saved_bytes(model, SEQ) - loss == pytest.approx(2 * trace.saved_bytes, rel=0.01)
