"""Tiny random causal language models of every architecture that transformers knows, made without any download.

A configuration class gets, of the small values below, those that its constructor names.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 128
SEQUENCE = 24
MOST_PARAMETERS = 8_000_000


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SMALL: dict[str, Any] = {
    **_each("vocab_size vocab_size_per_layer_input", VOCABULARY),
    **_each("hidden_size d_model n_embd n_embed dim embedding_size emb_dim embedding_dim word_embed_proj_dim", 32),
    **_each("lru_width attention_hidden_size", 32),
    **_each("intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff dff d_inner", 64),
    **_each("ffn_hidden_size feed_forward_size mlp_hidden_size intermediate_size_mlp", 64),
    **_each("moe_intermediate_size shared_expert_intermediate_size", 64),
    **_each("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers", 2),
    **_each("num_decoder_layers num_encoder_layers", 2),
    **_each("num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads", 4),
    **_each("num_key_value_heads num_kv_heads", 4),
    **_each("head_dim kv_channels d_kv rotary_dim qk_nope_head_dim qk_rope_head_dim v_head_dim", 8),
    **_each("max_position_embeddings n_positions n_ctx max_seq_len max_target_positions", 64),
    **_each("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
    **_each("num_experts_per_tok moe_k moe_topk", 2),
    **_each("n_group topk_group first_k_dense_replace", 1),
    **_each("q_lora_rank kv_lora_rank", 16),
    **_each("dropout attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop activation_dropout", 0.0),
    **_each("hidden_dropout_prob attention_probs_dropout_prob layerdrop decoder_layerdrop encoder_layerdrop", 0.0),
    "is_decoder": True,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What one class needs beside these.
EXTRA: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "dots1": {"head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
}


class Unbuildable(Exception):
    """No tiny model of this architecture can be made; the message says why."""


def architectures() -> list[str]:
    """The names that transformers gives its causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(kind: str) -> nn.Module:
    """A random model in fp32, the same at every call, in eval mode. Raises Unbuildable."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(_config(kind)).parameters())
        if size > MOST_PARAMETERS:
            raise Unbuildable(f"has {size:,} parameters even when shrunk")
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(_config(kind)).float().eval()
    except (Exception, SystemExit) as error:  # whatever a configuration says against these sizes
        raise error if isinstance(error, Unbuildable) else Unbuildable(f"{type(error).__name__}: {error}") from error


def _config(kind: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind_class = CONFIG_MAPPING[kind]
    known = inspect.signature(kind_class.__init__).parameters
    return kind_class(**{name: value for name, value in SMALL.items() if name in known} | EXTRA.get(kind, {}))


def one_step(model: nn.Module) -> list[Tensor | None]:
    """Loss and gradients of one step on fixed tokens."""
    tokens = torch.randint(3, VOCABULARY, (2, SEQUENCE), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]
