"""Models whose layers are row segments, and steps under a policy that divides them: shared by the tests of rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gradients import gradients
from torch import Tensor, nn

import memsys
from memsys import FILE, ROWS
from memsys.activations.decision import Decision, SavedTensor

WIDTH, HEADS, LAYERS = 32, 4, 2


class Block(nn.Module):
    """A decoder block of GPT's kind, written by hand."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        q, k, v = (part.view(batch, rows, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, rows, width)

    def between(self, h: Tensor) -> Tensor:
        return F.gelu(h)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attend(self.norm(x)))
        return x + self.down(self.between(self.up(self.norm2(x))))


class Stack(nn.Module):
    """Blocks one after another."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """torch's own layers."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1).contiguous()).transpose(0, 1)


class Words(nn.Module):
    """A model of the transformers library, from integers to hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        ids = (x[..., 0].detach().abs() * 1000).long() % 40
        return self.model(input_ids=ids, use_cache=False).last_hidden_state


def gpt2(**options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    quiet = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    chosen = quiet | {"attn_implementation": "sdpa"} | options
    return Words(GPT2Model(GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=40, **chosen)))


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return Words(LlamaModel(LlamaConfig(**_llama_like(**options))))


def qwen3(**options: Any) -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    return Words(Qwen3Model(Qwen3Config(**_llama_like(head_dim=8, **options))))


def _llama_like(**options: Any) -> dict[str, Any]:
    return {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
            "intermediate_size": 48, "vocab_size": 40, "attn_implementation": "sdpa", "bos_token_id": 0,
            "eos_token_id": 0} | options  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "hand-written": lambda: Stack(*(Block() for _ in range(LAYERS))),
    "encoder": Encoder,
    "encoder, sequence first": lambda: Encoder(batch_first=False),
    "gpt2": gpt2,
    "llama": llama,
    "qwen3": qwen3,
}


def made(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with the same weights at every call, training."""
    torch.manual_seed(0)
    return build().to(dtype).train()


def inputs(batch: int = 2, rows: int = 10, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """[batch, rows, WIDTH], the same values at every call."""
    return torch.randn(batch, rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Divide:
    """A policy: the first `alpha` of the rows, where there are rows; the rest whole. Remembers what it was asked."""

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha
        self.asked: list[SavedTensor] = []

    def __call__(self, saved: SavedTensor) -> Decision:
        self.asked.append(saved)
        return FILE if saved.row_segment is None else ROWS(self.alpha, saved.row_segment)

    @property
    def divided(self) -> list[SavedTensor]:
        """Of what was asked, what can be divided."""
        return [saved for saved in self.asked if saved.row_segment is not None and saved.row_segment.is_proven]

    @property
    def reasons(self) -> set[str]:
        """Why blocks were declined."""
        found = {saved.row_segment.declined for saved in self.asked if saved.row_segment is not None}
        return {reason for reason in found if reason is not None}

    def swapped_bytes(self, rows: int) -> int:
        """What should move: whole tensors, and of those with rows the first ceil(alpha * rows)."""
        first = math.ceil(round(self.alpha * rows, 6))
        whole = sum(saved.bytes for saved in self.asked)
        return whole - sum(saved.row_segment.row_bytes * (rows - first) for saved in self.divided)


def divided(model: nn.Module, spill_dir: Any, alpha: float = 0.5, **options: Any) -> tuple[nn.Module, Divide]:
    """A copy of the model, offloaded under `Divide(alpha)` and past the step in which blocks are not yet tried."""
    policy = Divide(alpha)
    copied = memsys.offload(copy.deepcopy(model), policy=policy, spill_dir=str(spill_dir), min_bytes=1, **options)
    return copied, policy


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that a norm at the model's end does not make constant."""
    y = model(x)
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).square().sum()


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Loss and gradients of one step from zeroed gradients, of the input too."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    loss = loss_of(model, x)
    loss.backward()
    grads = [gradient for gradient in gradients(model) if gradient is not None]
    return [loss.detach(), *grads, *([] if x.grad is None else [x.grad])]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to each tensor's largest value."""
    assert len(found) == len(wanted)
    return max(
        ((one - other).abs().max() / other.abs().max().clamp_min(1e-30)).item()
        for one, other in zip(found, wanted, strict=True)
    )
