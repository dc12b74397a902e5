"""What a plan predicts of memory is what is counted, and no step goes over its budget: several models and budgets."""

from __future__ import annotations

import copy
import statistics

import pytest
import torch
from built import needs_memsys
from torch import nn

needs_memsys()

from gradients import assert_idle, assert_same, step  # noqa: E402

import memsys  # noqa: E402
from memsys.activations import calibrate  # noqa: E402
from memsys.cli.gpt import GPT, GPTShape  # noqa: E402
from memsys.planning.swap_plan import Hardware, Link  # noqa: E402

SHARES = (0.25, 0.5, 0.75)
WITHIN = 0.05


@pytest.fixture(autouse=True)
def fixed_links(monkeypatch):
    link = Link(1e9, 1e9, slowdown=0.2)
    monkeypatch.setattr(
        calibrate, "measured_hardware", lambda _, folder, window_bytes: Hardware(link, None, window_bytes)
    )


def gpt():
    return GPT(GPTShape(layers=4, width=128, seq=512)), (torch.randint(256, (2, 512)),)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, use_cache=False)  # fmt: skip
    return LlamaForCausalLM(config), (torch.randint(128, (2, 512)),)


def encoder():
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), (torch.randn(2, 512, 128),)


def perceptron():
    layers = [nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(8)]
    return nn.Sequential(*layers), (torch.randn(1024, 256),)


def convolutions():
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers), (torch.randn(4, 3, 64, 64),)


MODELS = {"gpt": gpt, "llama": llama, "encoder": encoder, "perceptron": perceptron, "convolutions": convolutions}


def loss_step(model, inputs):
    def forward(*args):
        output = model(*args)
        return getattr(output, "logits", output)

    forward.zero_grad, forward.parameters = model.zero_grad, model.parameters
    return step(forward, *inputs)


@pytest.mark.parametrize("name", MODELS)
def test_predicted_and_counted_peaks(name, tmp_path):
    torch.manual_seed(0)
    plain, inputs = MODELS[name]()
    loss = lambda output: getattr(output, "logits", output).float().square().mean()  # noqa: E731
    options = {"loss": loss, "min_bytes": 1 << 14, "spill_dir": tmp_path}
    saved_bytes = memsys.plan(plain, inputs, device_budget="1GiB", **options).trace.saved_bytes
    wanted = loss_step(plain, inputs)
    misses = []
    for share in SHARES:
        budget = int(share * saved_bytes)
        model = copy.deepcopy(plain)
        plan = memsys.plan(model, inputs, device_budget=budget, **options)
        memsys.offload(model, plan=plan, spill_dir=tmp_path)
        for _ in range(3):
            assert_same(loss_step(model, inputs), wanted)
        stats = memsys.stats(model)
        assert stats.peak_device_bytes <= budget
        assert stats.fallback_count == 0
        misses.append(abs(plan.swap.predicted.peak_device_bytes / stats.peak_device_bytes - 1))
        assert_idle(model)
        memsys.restore(model)
    assert statistics.median(misses) <= WITHIN, misses


@pytest.mark.parametrize("name", MODELS)
def test_auto_holds_its_budget_from_the_first_step_on(name, tmp_path):
    torch.manual_seed(0)
    plain, inputs = MODELS[name]()
    wanted = loss_step(plain, inputs)
    budget = 4 << 20
    model = memsys.offload(copy.deepcopy(plain), device_budget=budget, min_bytes=1 << 14, spill_dir=tmp_path)
    for _ in range(4):
        assert_same(loss_step(model, inputs), wanted)
        assert memsys.stats(model).peak_device_bytes <= budget
    assert_idle(model)
