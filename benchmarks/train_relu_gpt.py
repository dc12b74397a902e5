"""How sparse does a ReLU GPT become under an L1 penalty, and what does that cost in loss?

Trains a byte-level GPT with ungated ReLU FFNs on the source of Python's standard library, adds a penalty on the mean
size of what its neurons put out, and reports loss and share of active neurons on text that it was not trained on:

    python benchmarks/train_relu_gpt.py --save relu-gpt.safetensors --trace relu-gpt-trace.npz

The same seed gives the same model on the same machine and torch. The trace holds the ids of the active neurons of every
token and layer, which is what other benchmarks replay: `offsets` (layers, tokens + 1) into `ids`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shown
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memsys
from memsys.cli.console import plain_table
from memsys.cli.gpt import VOCABULARY, Attention
from memsys.cli.text import Text

# Of the text, so much is kept for the report.
_HELD_OUT = 0.05


@dataclass(frozen=True)
class Setting:
    """What is trained. `hidden`: neurons of a layer; `l1`: weight of the mean, over tokens and layers, of the sum of a
    layer's activations, which grows to it over the first half of the steps."""

    layers: int = 4
    width: int = 128
    hidden: int = 8192
    seq: int = 256
    batch: int = 2
    steps: int = 400
    lr: float = 2e-3
    l1: float = 1e-4
    seed: int = 0


class Block(nn.Module):
    """Attention, then an ungated ReLU FFN, each behind a norm and added to its input."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(setting.width), Attention(setting.width)
        self.mlp_norm, self.mlp = nn.LayerNorm(setting.width), Mlp(setting.width, setting.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Mlp(nn.Module):
    """(..., width) to the same through `hidden` ReLU neurons."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj, self.act_fn, self.down_proj = nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)))


class ReluGPT(nn.Module):
    """Bytes in, logits of the next byte out: int64 (batch, seq) to (batch, seq, 256)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.bytes, self.positions = (nn.Embedding(n, setting.width) for n in (VOCABULARY, setting.seq))
        self.blocks = nn.ModuleList(Block(setting) for _ in range(setting.layers))
        self.norm, self.head = nn.LayerNorm(setting.width), nn.Linear(setting.width, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_residual = name.endswith(("out.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * setting.layers) if is_residual else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@contextlib.contextmanager
def activations(model: ReluGPT) -> Iterator[list[Tensor]]:
    """Inside, the list holds what each layer's neurons put out in the last forward."""
    found: list[Tensor] = []
    handles = [block.mlp.act_fn.register_forward_hook(lambda module, args, output: found.append(output))
               for block in model.blocks]  # fmt: skip
    handles.append(model.register_forward_pre_hook(lambda module, args: found.clear()))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def split(text: Text) -> tuple[Text, Text]:
    """(what is trained on, what is reported on)."""
    parts = Text(b"", text.name), Text(b"", f"the end of {text.name}")
    cut = int(len(text) * (1 - _HELD_OUT))
    parts[0].content, parts[1].content = text.content[:cut], text.content[cut:]
    return parts


def train(setting: Setting, text: Text, tell: Callable[[str], object] = lambda line: None) -> ReluGPT:
    """The trained model, the same for the same arguments."""
    torch.manual_seed(setting.seed)
    model = ReluGPT(setting)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.lr, betas=(0.9, 0.95))
    began = time.perf_counter()
    with activations(model) as hidden:
        for step in range(setting.steps):
            tokens, targets = text.batch(step, setting.batch, setting.seq, setting.seed)
            done = (step + 1) / setting.steps
            for group in optimizer.param_groups:
                group["lr"] = setting.lr * min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * done))
            loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
            size = torch.stack([layer.sum(-1).mean() for layer in hidden]).mean()
            (loss + setting.l1 * min(1.0, 2 * done) * size).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0 or step + 1 == setting.steps:
                share = sum((layer != 0).float().mean().item() for layer in hidden) / len(hidden)
                tell(f"step {step}: loss {loss.item():.3f} nats, {share:.2%} of the neurons active, "
                     f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    return model.eval().requires_grad_(False)


@torch.no_grad()
def measure(model: ReluGPT, text: Text, batches: int = 8) -> dict[str, Any]:
    """Loss on text that was not trained on, and memsys.coverage of it, one sequence a batch."""
    setting = model.setting
    pairs = [text.batch(step, 1, setting.seq, setting.seed + 1) for step in range(batches)]
    losses = [F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).item() for tokens, targets in pairs]
    report = memsys.coverage(model, [tokens for tokens, _ in pairs])
    return {"loss_nats": sum(losses) / len(losses), "active_share": report.active_share, "coverage": report.as_dict(),
            "text": str(report)}  # fmt: skip


@torch.no_grad()
def trace(model: ReluGPT, text: Text, token_count: int) -> dict[str, np.ndarray]:
    """Active neurons of `token_count` bytes of text, in sequences of the model's length, the last cut short.

    `ids` uint16: neurons, ascending within a token; those of layer l and token t are
    `ids[offsets[l, t] : offsets[l, t + 1]]`. `starts` counts tokens: where sequences begin. `neurons` of a layer.
    """
    seq, parts = model.setting.seq, []
    with activations(model) as hidden:
        for begin in range(0, token_count, seq):
            tokens = text.content[begin : min(begin + seq, token_count)].long()[None]
            model(tokens)
            parts.append(torch.stack([layer[0] != 0 for layer in hidden]))
    active = torch.cat(parts, dim=1)
    ids, offsets = ragged(active)
    return {"ids": ids, "offsets": offsets,
            "starts": np.arange(0, token_count, seq), "neurons": np.array(active.shape[-1])}  # fmt: skip


def ragged(active: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets) of a trace, from bools (layers, tokens, neurons)."""
    found = active.numpy()
    counts = found.sum(-1)
    ends = counts.cumsum().reshape(counts.shape)
    offsets = np.concatenate([ends[:, :1] - counts[:, :1], ends], axis=1)
    return found.nonzero()[2].astype(np.uint16), offsets.astype(np.int64)


def save(model: ReluGPT, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state_dict(), path, {"format": "pt", "setting": json.dumps(asdict(model.setting))})


def load(path: Path) -> ReluGPT:
    """The model that `save` wrote, frozen, in eval mode."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        setting = Setting(**json.loads(file.metadata()["setting"]))
    model = ReluGPT(setting)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def report_lines(setting: Setting, measured: dict[str, Any], seconds: float) -> list[str]:
    """What came of it."""
    row = [f"{measured['loss_nats']:.3f}", f"{measured['loss_nats'] / math.log(2):.3f}",
           f"{1 - measured['active_share']:.2%}", f"{seconds:.0f}"]  # fmt: skip
    title = (f"{setting.layers} layers of width {setting.width} and {setting.hidden} neurons, {setting.steps} steps "
             f"of {setting.batch} x {setting.seq} bytes, L1 {setting.l1:g}, seed {setting.seed}")  # fmt: skip
    return [plain_table(title, ["held-out loss, nats", "bits a byte", "inactive", "s"], [row]), measured["text"]]


@pytest.mark.timeout(1800)  # in earnest it trains for minutes
def test_relu_gpt(benchmark, capsys, tmp_path: Path) -> None:
    """Trains, saves, loads the same model again, and traces the neurons that a forward shows."""
    small = Setting(layers=2, width=64, hidden=128, seq=32, batch=2, steps=2)
    setting = Setting() if benchmark.enabled else small
    training, held_out = split(Text.load())
    began = time.perf_counter()
    model = benchmark.pedantic(train, args=(setting, training), rounds=1, iterations=1)
    measured = measure(model, held_out, batches=8 if benchmark.enabled else 1)
    shown.show(capsys, *report_lines(setting, measured, time.perf_counter() - began), *shown.caution(benchmark))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    tokens = held_out.content[None, : setting.seq].long()
    with activations(again) as hidden:
        assert torch.equal(again(tokens), model(tokens))
        found = trace(again, held_out, setting.seq + 5)
        again(tokens)
    for layer, values in enumerate(hidden):
        for token in (0, setting.seq - 1):
            begin, end = found["offsets"][layer, token : token + 2]
            assert found["ids"][begin:end].tolist() == values[0, token].nonzero().flatten().tolist()
    assert found["offsets"].shape == (setting.layers, setting.seq + 6) and found["starts"].tolist() == [0, setting.seq]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="(default: %(default)s)")
    parser.add_argument("--data", metavar="FILE", help="text to train on (the Python standard library's source)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the model to FILE, as safetensors")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the active neurons of held-out text (.npz)")
    parser.add_argument("--trace-tokens", type=int, default=2048, metavar="N", help="of that many bytes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured to FILE")
    arguments = parser.parse_args()
    setting = Setting(**{name: value for name, value in vars(arguments).items() if hasattr(Setting, name)})
    training, held_out = split(Text.load(arguments.data))
    began = time.perf_counter()
    model = train(setting, training, tell=print)
    measured = measure(model, held_out)
    print(*report_lines(setting, measured, time.perf_counter() - began), sep="\n", flush=True)
    if arguments.save is not None:
        save(model, arguments.save)
    if arguments.trace is not None:
        np.savez_compressed(arguments.trace, **trace(model, held_out, arguments.trace_tokens))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"setting": asdict(setting), "torch": torch.__version__, **measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
