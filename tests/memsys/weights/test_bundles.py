"""Which networks are bundled, and that a bundle's rows are the network's own."""

import json
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from torch import nn
from weight_files import ReluBlock, relu_model

needs_memsys()

from memsys import InputError, pack_weights  # noqa: E402
from memsys.weights.bundles import Facts, Ffn, bundle_of, networks_of_names  # noqa: E402
from memsys.weights.checked import Weights, open_weights  # noqa: E402


def packed(source: object, tmp_path: Path, **options: object) -> Weights:
    path = tmp_path / f"packed{len(list(tmp_path.iterdir()))}.safetensors"
    pack_weights(source, path, **options)
    return open_weights(path)


def assert_rows_are_the_networks(weights: Weights, name: str) -> None:
    bundle = weights.bundles[name]
    rows = weights.read(name)
    entry = weights.entries[name]
    assert rows.shape == (bundle.rows, bundle.stride_bytes // rows.element_size())
    assert bundle.stride_bytes % 4096 == 0 and entry.offset % 4096 == 0
    assert entry.unit_bytes in (bundle.part_bytes, bundle.stride_bytes) and entry.unit_bytes % 4096 == 0
    for place, part in enumerate(bundle.parts):
        dense = weights.read(bundle.tensors[part])
        found = rows[:, place * bundle.columns : (place + 1) * bundle.columns]
        assert torch.equal(found, dense.t() if bundle.is_transposed[part] else dense)
    assert not rows[:, len(bundle.parts) * bundle.columns :].any()


@pytest.mark.parametrize(("width", "dtype"), [(24, torch.float32), (1024, torch.float32), (2048, torch.bfloat16),
                                              (33, torch.float64), (1000, torch.float16)])  # fmt: skip
def test_rows_of_a_plain_network(width: int, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = packed(relu_model(width, 40, dtype), tmp_path)
    assert list(weights.bundles) == ["layers.0.memsys_bundle", "layers.1.memsys_bundle"]
    for name in weights.bundles:
        assert_rows_are_the_networks(weights, name)
        assert weights.bundles[name].parts == ("up", "down")
        assert weights.bundles[name].is_transposed == {"up": False, "down": True}


def test_a_bundle_larger_than_one_chunk(tmp_path: Path) -> None:
    weights = packed(relu_model(24, 5000), tmp_path)  # 20 MB of rows
    assert_rows_are_the_networks(weights, "layers.1.memsys_bundle")


def opt(activation: str) -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                                    num_attention_heads=4, word_embed_proj_dim=32, max_position_embeddings=64,
                                    activation_function=activation))  # fmt: skip


def llama(activation: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, hidden_act=activation))  # fmt: skip


def gpt2(activation: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
                                      activation_function=activation))  # fmt: skip


MODELS = {
    "opt": (opt, ("up", "down"), {"up": False, "down": True}),
    "llama": (llama, ("up", "gate", "down"), {"up": False, "gate": False, "down": True}),
    "gpt2": (gpt2, ("up", "down"), {"up": True, "down": False}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_transformers(kind: str, tmp_path: Path) -> None:
    """Found in the module and, by names and config.json, in its folder: the same bundles."""
    make, parts, is_transposed = MODELS[kind]
    model = make("relu")
    weights = packed(model, tmp_path)
    assert len(weights.bundles) == 2
    for name, bundle in weights.bundles.items():
        assert (bundle.parts, bundle.is_transposed) == (parts, is_transposed)
        assert_rows_are_the_networks(weights, name)
    model.save_pretrained(tmp_path / "folder", max_shard_size="30KB")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    again = packed(tmp_path / "folder", tmp_path)
    assert again.bundles == weights.bundles
    for name in again.bundles:
        assert torch.equal(again.read(name), weights.read(name))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("activation", ["gelu", "silu", "relu2", "relu6"])
def test_other_activations_are_left_alone(kind: str, activation: str, tmp_path: Path) -> None:
    model = MODELS[kind][0](activation)
    assert packed(model, tmp_path).bundles == {}
    model.save_pretrained(tmp_path / "folder")
    assert packed(tmp_path / "folder", tmp_path).bundles == {}


def test_each_network_is_judged_by_itself(tmp_path: Path) -> None:
    model = relu_model()
    model.layers[0] = ReluBlock(24, 40, nn.GELU())
    assert list(packed(model, tmp_path).bundles) == ["layers.1.memsys_bundle"]


def test_when_it_is_not_wanted(tmp_path: Path) -> None:
    assert packed(relu_model(), tmp_path, bundle_ffn=False).bundles == {}
    assert packed(dict(relu_model().state_dict()), tmp_path).bundles == {}  # a dict says nothing of activations


def test_a_network_that_does_not_fit_stays_dense_and_is_logged(tmp_path: Path, caplog) -> None:
    model = relu_model()
    model.layers[0].fc2 = nn.Linear(40, 30)
    model.layers[1].fc1.to(torch.float16)
    with caplog.at_level("INFO", logger="memsys"):
        assert packed(model, tmp_path).bundles == {}
    assert caplog.text.count("not bundled") == 2 and "layers.1" in caplog.text


def test_layers_that_share_weights_share_a_bundle(tmp_path: Path) -> None:
    model = relu_model()
    model.layers[1].fc1.weight, model.layers[1].fc2.weight = model.layers[0].fc1.weight, model.layers[0].fc2.weight
    assert list(packed(model, tmp_path).bundles) == ["layers.0.memsys_bundle"]


def test_parts_of_several_models_are_not_guessed(tmp_path: Path) -> None:
    """One activation on top of two configurations may be that of either."""
    facts = {"a.fc1.weight": Facts("F32", (4, 2)), "a.fc2.weight": Facts("F32", (2, 4))}
    assert len(networks_of_names(facts, {"hidden_act": "relu"})) == 1
    assert networks_of_names(facts, {"hidden_act": "relu", "vision_config": {"hidden_act": "gelu"}}) == []
    assert networks_of_names(facts, {"hidden_act": "relu", "activation_function": "gelu"}) == []
    assert networks_of_names(facts, {}) == []


def test_a_square_weight_that_may_be_either_way_is_not_guessed() -> None:
    facts = {"a.c_fc.weight": Facts("F32", (4, 4)), "a.c_proj.weight": Facts("F32", (4, 4)),
             "a.c_fc.bias": Facts("F32", (4,))}  # fmt: skip
    assert networks_of_names(facts, {"activation_function": "relu"}) == []


@pytest.mark.parametrize(
    "facts",
    [
        {"u": Facts("F32", (4, 2)), "d": Facts("F32", (2, 5))},
        {"u": Facts("F32", (4, 2)), "d": Facts("F16", (2, 4))},
        {"u": Facts("I8", (4, 2)), "d": Facts("I8", (2, 4))},
        {"u": Facts("F32", (4, 2, 1)), "d": Facts("F32", (2, 4))},
        {"u": Facts("F32", (0, 2)), "d": Facts("F32", (2, 0))},
        {"u": Facts("F32", (4, 2))},
    ],
)
def test_what_does_not_fit_together(facts: dict[str, Facts]) -> None:
    with pytest.raises(InputError, match="bundle_ffn=False"):
        bundle_of(Ffn("a", {"up": "u", "down": "d"}, {"up": False, "down": True}), facts)


def test_a_nan_keeps_its_bits(tmp_path: Path) -> None:
    model = relu_model(24, 4)
    with torch.no_grad():
        model.layers[0].fc1.weight.view(torch.int32)[0, 0] = 0x7FA00001  # signalling, with a payload
    weights = packed(model, tmp_path)
    assert weights.read("layers.0.memsys_bundle").view(torch.int32)[0, 0] == 0x7FA00001


def test_the_description_is_the_documented_one(tmp_path: Path) -> None:
    weights = packed(llama("relu"), tmp_path)
    described = json.loads(weights.files[0].metadata["memsys.layout"])["bundles"]["model.layers.0.mlp.memsys_bundle"]
    assert described == {
        "parts": ["up", "gate", "down"],
        "tensors": {part: f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate", "down")},
        "rows": 48, "columns": 32, "part_bytes": 128, "stride_bytes": 4096,
        "is_transposed": {"up": False, "gate": False, "down": True}, "dtype": "F32", "activation": "relu",
    }  # fmt: skip
