"""One training run of the reference GPT: builds what a Setting describes, and does one step of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from memsys.cli.gpt import GPT, GPTShape
from memsys.cli.parallel import Ranks
from memsys.cli.setting import Setting
from memsys.cli.text import Text

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WARM_UP_BYTES = 16


class DeviceMissing(ValueError):
    """A GPU was asked for and there is none."""


def pick_device(name: str) -> torch.device:
    """The torch device of "cpu", "cuda" or "auto" (a GPU if torch sees one). Raises DeviceMissing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing(
            "--device cuda was asked for, but torch sees no GPU; see `memsys doctor`, or use --device cpu"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass
class Run:
    """A model with its optimizer and text, after one tiny step that made gradients and optimizer state.

    trained: what a step calls: the model, or a wrapper that exchanges gradients with other processes.
    """

    setting: Setting
    device: torch.device
    text: Text
    model: GPT
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def build(cls, setting: Setting, ranks: Ranks | None = None) -> Run:
        ranks = ranks or Ranks()
        device = pick_device(setting.device)
        text = Text.load(setting.data)
        torch.manual_seed(setting.seed)
        model = GPT(GPTShape(layers=setting.layers, width=setting.width, seq=setting.seq))
        model = model.to(device=device, dtype=_DTYPES[setting.dtype])
        trained = ranks.wrap(model)
        # Fused: updates in place, without temporaries of the model's size.
        optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=0.0, fused=True)
        run = cls(setting, device, text, model, trained, optimizer, ranks)
        run._materialise()
        return run

    def _materialise(self) -> None:
        tokens, targets = self.batch(0)
        self.trained(tokens[:, :_WARM_UP_BYTES], targets[:, :_WARM_UP_BYTES]).backward()
        self.optimizer.zero_grad(set_to_none=False)
        self.optimizer.step()  # zero gradients and no weight decay: makes the state, moves no weight

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets) of `step`, each (batch, seq) on the device; no two processes have the same."""
        setting = self.setting
        number = step * self.ranks.count + self.ranks.rank
        tokens, targets = self.text.batch(number, setting.batch, setting.seq, setting.seed)
        return tokens.to(self.device), targets.to(self.device)

    def step(self, step: int) -> tuple[float, float]:
        """(loss, seconds) of forward, backward and update on the batch of `step`."""
        tokens, targets = self.batch(step)
        started = self._clock()
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.trained(tokens, targets)
        loss.backward()
        self.optimizer.step()
        return loss.item(), self._clock() - started

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
