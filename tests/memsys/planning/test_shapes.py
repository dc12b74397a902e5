"""Shapes against published counts, and a layer's saved tensors against the counts of the paper and of transformers."""

from __future__ import annotations

import pytest

from memsys.errors import InputError
from memsys.planning.decoder import layer_of, layer_units, minimal_units
from memsys.planning.shapes import SHAPES, ModelShape, find_shape


def test_memo_layers_save_16_units() -> None:
    for name in ("gpt-7b", "gpt-13b", "gpt-30b", "gpt-65b"):
        assert layer_units(SHAPES[name]) == 16


def test_llama_saves_what_transformers_saves() -> None:
    assert layer_units(SHAPES["llama3-8b"]) == 24.5
    assert minimal_units(SHAPES["llama3-8b"]) == 11.5
    assert minimal_units(SHAPES["qwen3-8b"]) == 10.5


@pytest.mark.parametrize("name", ["gpt-7b", "llama3-8b-fused", "qwen3-8b-fused"])
def test_what_no_cheap_operation_makes_again_is_the_minimal_set(name: str) -> None:
    shape = SHAPES[name]
    kept = sum(tensor.width for tensor in layer_of(shape).tensors if not tensor.made_from)
    assert kept == minimal_units(shape) * shape.hidden


@pytest.mark.parametrize(
    ("name", "billions", "tolerance"),
    [("gpt-7b", 6.65, 0.01), ("gpt-13b", 12.84, 0.01), ("gpt-30b", 29.96, 0.01), ("gpt-65b", 64.84, 0.01),
     ("llama3-8b", 8.03, 0.005), ("llama3-70b", 70.55, 0.01), ("qwen3-8b", 8.19, 0.005)],
)  # fmt: skip
def test_parameters_are_the_published_ones(name: str, billions: float, tolerance: float) -> None:
    assert SHAPES[name].parameters == pytest.approx(billions * 1e9, abs=tolerance * 1e9)


def test_flops_are_the_sum_over_the_layers_operations() -> None:
    """Forward of the operations, three times, is the convention's 6 for a parameter and 6·h·s for attention."""
    shape, seq = SHAPES["llama3-8b"], 4096
    gemm = sum(item.amount for item in layer_of(shape).operations if item.kind.value == "gemm")
    attention = sum(item.amount for item in layer_of(shape).operations if item.kind.value == "attention") * seq / 2
    forward = seq * (shape.layers * (gemm + attention) + 2 * shape.vocab * shape.hidden)
    assert 3 * forward == pytest.approx(shape.model_flops(seq), rel=1e-12)


def test_every_saved_tensor_is_made_by_an_operation_and_read_by_one() -> None:
    for shape in SHAPES.values():
        layer = layer_of(shape)
        read = {name for operation in layer.operations for name in operation.reads}
        saved = {name for operation in layer.operations for name in operation.saves} | {"layer_input"}
        names = [tensor.name for tensor in layer.tensors]
        assert len(set(names)) == len(names)
        assert set(names) == saved == read, shape.name


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="no such name; known are gpt-7b"):
        find_shape("gpt-9b")
    with pytest.raises(InputError, match="multiple of heads"):
        ModelShape("odd", 2, 100, 400, 3, 3, 10)
    assert find_shape("GPT-7B") is SHAPES["gpt-7b"]
