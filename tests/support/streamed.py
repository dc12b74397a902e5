"""Small models of repeated blocks with adapters, and the files that they are streamed from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 32
Step = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Block(torch.nn.Module):
    """An adapter, and two frozen matrices behind it, so that backward needs them in every block."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.down = torch.nn.Linear(3 * WIDTH, WIDTH)
        self.adapter = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.adapter(x)
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))


class Stack(torch.nn.Module):
    """Blocks in a row; `run` calls one (a checkpoint does it its own way)."""

    def __init__(self, count: int, run: Callable | None = None) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(count))
        self.head = torch.nn.Linear(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x) if self.run is None else self.run(block, x)
        return self.head(x)


def stack(count: int, run: Callable | None = None) -> Stack:
    """A seeded stack of which only adapters are trained."""
    torch.manual_seed(count)
    model = Stack(count, run)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    return model


def plain_file(model: torch.nn.Module, folder: Path, but: str = "adapter") -> str:
    """A plain safetensors file of the model's weights, all but those with `but` in their name."""
    state = {name: value.clone() for name, value in model.state_dict().items() if but not in name}
    path = str(folder / "plain.safetensors")
    save_file(state, path)
    return path


def inputs(count: int = 1) -> list[torch.Tensor]:
    """Seeded inputs of a stack."""
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(4, 6, WIDTH, generator=generator) for _ in range(count)]


def step(model: torch.nn.Module, x: torch.Tensor) -> Step:
    """Loss and gradients of one step."""
    loss = model(x).square().mean()
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return loss.detach().clone(), gradients


def same(found: Step, wanted: Step) -> bool:
    """Whether loss and every gradient are equal to the last bit."""
    if found[1].keys() != wanted[1].keys() or not wanted[1]:
        return False
    return torch.equal(found[0], wanted[0]) and all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])


def twin(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, resident."""
    return copy.deepcopy(model)
