"""ReLU FFNs are found however they are written, and what is none is not taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memsys.weights.relu_probe import Ffn, linear_layers, probe


class Written(nn.Module):
    """An FFN whose activation is whatever `combine` does with the layers' outputs."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 6)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.combine(self.gate(x), self.up(x)))


def found_in(model: nn.Module, *args, **kwargs) -> dict[Ffn, Tensor]:
    found: dict[Ffn, Tensor] = {}
    with torch.no_grad(), probe(model.eval(), lambda ffn, active: found.update({ffn: active})):
        model(*args, **kwargs)
    return found


def example(seed: int = 0) -> Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("combine", "activation"),
    [
        (lambda gate, up: F.relu(up), "relu"),
        (lambda gate, up: F.relu_(up), "relu"),
        (lambda gate, up: F.dropout(F.relu(up), 0.5, training=False), "relu"),
        (lambda gate, up: F.relu(up).square(), "relu squared"),
        (lambda gate, up: F.relu(gate) * up, "gated relu"),
        (lambda gate, up: up * F.relu(gate), "gated relu"),
    ],
)
def test_written_in_any_way(combine: Callable, activation: str) -> None:
    torch.manual_seed(0)
    model = Written(combine)
    ((ffn, active),) = found_in(model, example()).items()
    assert ffn == Ffn("up", "gate" if activation == "gated relu" else "", "down", activation)
    decisive = model.gate if ffn.gate else model.up
    assert torch.equal(active, decisive(example()) > 0)
    assert 0.2 < active.float().mean() < 0.8


@pytest.mark.parametrize(
    "combine",
    [
        lambda gate, up: F.gelu(up),
        lambda gate, up: F.silu(gate) * up,
        lambda gate, up: up,
        lambda gate, up: F.relu(up - 0.1),
        lambda gate, up: F.leaky_relu(up),
        lambda gate, up: F.relu6(10 * up),
        lambda gate, up: up * (up.abs() > 0.3),
    ],
)
def test_none_of_these_is_one(combine: Callable) -> None:
    torch.manual_seed(0)
    assert found_in(Written(combine), example()) == {}


def test_zeros_alone_tell_nothing() -> None:
    model = Written(lambda gate, up: up)
    model.up.bias = None
    assert found_in(model, torch.zeros(2, 5, 6)) == {}


def test_a_layer_that_puts_out_nothing_negative_tells_nothing() -> None:
    """Zeros and positive numbers go into `down`, but no ReLU made them."""
    model = Written(lambda gate, up: up)
    model.up.bias = None
    model.up.weight.detach().abs_()
    x = example().abs()
    x[0, 0] = 0
    assert found_in(model, x) == {}
    model.combine = lambda gate, up: up.clone()
    assert found_in(model, x) == {}


def test_a_known_ffn_is_counted_whatever_is_active() -> None:
    torch.manual_seed(0)
    model, counts = Written(lambda gate, up: F.relu(up)), []
    with torch.no_grad(), probe(model, lambda ffn, active: counts.append(int(active.sum()))):
        for shift in (-100.0, 0.0, -100.0, 100.0):
            model.up.bias.fill_(shift)
            model(example())
    assert len(counts) == 3  # the first call told nothing
    assert 0 < counts[0] < 240
    assert counts[1:] == [0, 240]


def test_torchs_own_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    names = [ffn.down for ffn in found_in(nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 16))]
    assert names == ["layers.0.linear2", "layers.1.linear2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options", "up", "activation"),
    [
        ("OPT", {"ffn_dim": 64, "hidden_size": 32, "word_embed_proj_dim": 32}, "fc1", "relu"),
        ("GPT2", {"activation_function": "relu", "n_embd": 32, "n_layer": 2, "n_head": 2}, "mlp.c_fc", "relu"),
        ("Llama", {"hidden_act": "relu", "hidden_size": 32, "intermediate_size": 64}, "mlp.up_proj", "gated relu"),
        ("Llama", {"hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64}, None, None),
    ],
)
def test_models_of_transformers(kind: str, options: dict, up: str | None, activation: str | None) -> None:
    import transformers

    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases of zero and small weights make few values negative
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    found = found_in(model, input_ids=torch.arange(12)[None])
    if up is None:
        assert not found
        return
    assert len(found) == 2
    for ffn in found:
        assert ffn.up.endswith(up) and ffn.activation == activation


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_belongs_to_the_layer_that_it_wraps() -> None:
    import peft

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6))
    model = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["0", "2"], init_lora_weights=False))
    assert list(linear_layers(model)) == ["base_model.model.0", "base_model.model.2"]
    ((ffn, active),) = found_in(model, example()).items()
    assert ffn == Ffn("base_model.model.0", "", "base_model.model.2", "relu")
    assert torch.equal(active, model.base_model.model[0](example()) > 0)


def test_hooks_are_gone_after_an_error() -> None:
    model = Written(lambda gate, up: F.relu(up))
    with pytest.raises(RuntimeError), probe(model, lambda ffn, active: None):
        model(torch.zeros(2, 7))
    assert not any(module._forward_hooks for module in model.modules())
