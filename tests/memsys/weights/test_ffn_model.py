"""windowed_ffn: models of transformers whose ReLU networks stream their rows answer to the last bit as before."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from built import needs_memsys
from torch import nn

needs_memsys()

import memsys  # noqa: E402
from memsys.weights.ffn_model import ffn_stats, windowed_ffn  # noqa: E402
from memsys.weights.ffn_parts import WindowedDown, WindowedUp  # noqa: E402
from memsys.weights.pack import pack_weights  # noqa: E402

TOKENS = torch.tensor([[3, 17, 9, 44, 5, 61]])


def opt_model() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(vocab_size=64, hidden_size=32, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=3,
                       num_attention_heads=4, max_position_embeddings=64, dropout=0.0)  # fmt: skip
    return OPTForCausalLM(config)


def llama_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=4, hidden_act="relu")  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2_model() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=32, n_inner=96, n_layer=3, n_head=4, n_positions=64,
                        activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    return GPT2LMHeadModel(config)


STREAMED = ("fc2", "down_proj", "up_proj", "mlp.c_proj")
MODELS = {"opt": opt_model, "llama": llama_model, "gpt2": gpt2_model}


def made(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]().to(dtype).eval()


@pytest.fixture
def packed(tmp_path):
    def pack(model: nn.Module) -> str:
        path = str(tmp_path / "model.safetensors")
        pack_weights(model, path)
        return path

    return pack


@pytest.mark.parametrize("layout", ["zero_filled", "compacted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_answers_as_before(kind, dtype, layout, packed):
    plain = made(kind, dtype)
    streamed = windowed_ffn(copy.deepcopy(plain), packed(plain), layout=layout, capacity_rows=80)
    with torch.no_grad():
        wanted, found = plain(TOKENS).logits, streamed(TOKENS).logits
        if layout == "zero_filled":
            assert torch.equal(found, wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)
    assert ffn_stats(streamed)["step_count"] >= 3
    assert sum(isinstance(module, WindowedDown) for module in streamed.modules()) == 3
    assert sum(isinstance(module, WindowedUp) for module in streamed.modules()) == (3 if kind == "llama" else 0)


@pytest.mark.parametrize("policy", ["window", "lru"])
@pytest.mark.parametrize("kind", MODELS)
def test_generated_tokens_are_the_same(kind, policy, packed):
    plain = made(kind)
    streamed = windowed_ffn(copy.deepcopy(plain), packed(plain), policy=policy, window_tokens=3, capacity_rows=90)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(streamed.generate(TOKENS, **options), plain.generate(TOKENS, **options))
    stats = ffn_stats(streamed)
    assert stats["arrival_count"] > 0 and stats["read_bytes"] >= stats["wanted_bytes"] > 0


@pytest.mark.parametrize("kind", MODELS)
def test_the_weights_that_are_streamed_are_gone(kind, packed):
    plain = made(kind)
    path = packed(plain)
    downs = [weakref.ref(module) for name, module in plain.named_modules() if name.endswith(STREAMED)]
    assert len(downs) >= 3
    windowed_ffn(plain, path, capacity_rows=10)
    gc.collect()
    assert [one for one in downs if one() is not None] == []


def test_the_budget_is_shared(packed):
    plain = made("llama")
    path = packed(plain)
    # 32 reads of at most 128 KiB with a page on either side, and two dense weights of 96 x 32 floats.
    fixed = 32 * (128 * 1024 + 8192) + 2 * 96 * 32 * 4
    rows = 3 * (4096 + 20 * 2 * 32 * 4)
    streamed = windowed_ffn(copy.deepcopy(plain), path, device_budget=fixed + rows)
    assert {one.rows.core.capacity_rows for one in streamed.modules() if isinstance(one, WindowedDown)} == {20}
    with torch.no_grad():
        assert torch.equal(streamed(TOKENS).logits, plain(TOKENS).logits)
    with pytest.raises(memsys.BudgetError):
        windowed_ffn(copy.deepcopy(plain), path, device_budget=fixed + 100)


def test_hot_rows_by_name(packed):
    plain = made("opt")
    path = packed(plain)
    names = [f"model.decoder.layers.{layer}.memsys_bundle" for layer in range(3)]
    streamed = windowed_ffn(copy.deepcopy(plain), path, policy="hot", hot=dict.fromkeys(names, range(40)))
    with torch.no_grad():
        assert torch.equal(streamed(TOKENS).logits, plain(TOKENS).logits)
    with pytest.raises(memsys.InputError, match="names of bundles"):
        windowed_ffn(copy.deepcopy(plain), path, policy="hot", hot={"nothing": [1]})
    with pytest.raises(memsys.InputError, match="hot"):
        windowed_ffn(copy.deepcopy(plain), path, policy="hot", hot={names[0]: [1]})


def test_a_model_that_does_not_fit_the_file_is_refused_and_unchanged(packed):
    plain = made("opt")
    path = packed(plain)
    with pytest.raises(memsys.InputError, match=r"convert the model"):
        windowed_ffn(made("opt", torch.bfloat16), path)
    with pytest.raises(memsys.InputError, match=r"fc1\.weight.*that was packed"):
        windowed_ffn(made("llama"), path)
    other = made("opt")
    other.model.decoder.layers[2].fc2 = nn.Linear(97, 32)
    with pytest.raises(memsys.InputError, match=r"layers\.2\.fc2\.weight"):
        windowed_ffn(other, path)
    assert not [one for one in other.modules() if isinstance(one, WindowedDown)]
    other = made("opt")
    other.model.decoder.layers[1].fc1.to("meta")
    with pytest.raises(memsys.InputError, match=r"layers\.1\.fc1\.weight.*meta"):
        windowed_ffn(other, path)
    with pytest.raises(memsys.UnsupportedError, match="windowed networks"):
        ffn_stats(plain)


def test_a_file_without_bundles_is_refused(tmp_path):
    plain = made("opt")
    path = str(tmp_path / "plain.safetensors")
    pack_weights(plain, path, bundle_ffn=False)
    with pytest.raises(memsys.InputError, match="bundle_ffn"):
        windowed_ffn(plain, path)


def test_training_is_refused_with_a_remedy(packed):
    plain = made("opt")
    streamed = windowed_ffn(copy.deepcopy(plain), packed(plain), capacity_rows=90)
    with pytest.raises(memsys.UnsupportedError, match="no_grad"):
        streamed(TOKENS)
