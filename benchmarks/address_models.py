"""Small models whose steps have the allocation streams of large ones: what bench_addresses.py plans for.

Each is the architecture as its library builds it, at a size a CPU runs in a second, with enough rows in the batch that
activations outweigh the bookkeeping. All weights are random: which addresses are asked for doesn't depend on them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], Tensor]  # one forward; gives back the loss


def _tokens(vocabulary: int, batch: int = 4, length: int = 256) -> Tensor:
    return torch.randint(2, vocabulary, (batch, length))


def gpt2() -> tuple[nn.Module, Step]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=256, n_layer=8, n_head=8, n_positions=256))
    ids = _tokens(2048)
    return model, lambda: model(input_ids=ids, labels=ids).loss


def llama() -> tuple[nn.Module, Step]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=8,
                                         num_attention_heads=8, num_key_value_heads=4))  # fmt: skip
    ids = _tokens(2048)
    return model, lambda: model(input_ids=ids, labels=ids).loss


def bert() -> tuple[nn.Module, Step]:
    """The shape of all-MiniLM-L6, with its masked-token head."""
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=2048, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                                       intermediate_size=1536))  # fmt: skip
    ids = _tokens(2048)
    mask = torch.ones_like(ids)
    mask[0, 200:] = 0
    return model, lambda: model(input_ids=ids, attention_mask=mask, labels=ids).loss


def t5() -> tuple[nn.Module, Step]:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=2048, d_model=256, d_kv=32, d_ff=1024, num_layers=4,
                                                num_heads=8, decoder_start_token_id=0))  # fmt: skip
    ids, labels = _tokens(2048), _tokens(2048, length=128)
    return model, lambda: model(input_ids=ids, labels=labels).loss


def marian() -> tuple[nn.Module, Step]:
    from transformers import MarianConfig, MarianMTModel

    model = MarianMTModel(MarianConfig(vocab_size=2048, d_model=256, encoder_layers=4, decoder_layers=4,
                                       encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=1024,
                                       decoder_ffn_dim=1024, max_position_embeddings=256, pad_token_id=0,
                                       eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1))  # fmt: skip
    ids, labels = _tokens(2048), _tokens(2048, length=128)
    return model, lambda: model(input_ids=ids, labels=labels).loss


def vit() -> tuple[nn.Module, Step]:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(hidden_size=256, num_hidden_layers=8, num_attention_heads=8,
                                                intermediate_size=1024, image_size=96, patch_size=8))  # fmt: skip
    images, labels = torch.randn(8, 3, 96, 96), torch.zeros(8, dtype=torch.long)
    return model, lambda: model(pixel_values=images, labels=labels).loss


def resnet() -> tuple[nn.Module, Step]:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256, 512],
                                                      depths=[3, 4, 6, 3]))  # fmt: skip
    images, labels = torch.randn(4, 3, 96, 96), torch.zeros(4, dtype=torch.long)
    return model, lambda: model(pixel_values=images, labels=labels).loss


def llama_checkpointed() -> tuple[nn.Module, Step]:
    """Each layer's forward comes again inside its backward."""
    model, step = llama()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, step


MODELS = {build.__name__: build for build in (gpt2, llama, llama_checkpointed, bert, t5, marian, vit, resnet)}
