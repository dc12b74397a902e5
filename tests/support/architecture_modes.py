"""Ways in which people run the layers of a model: as they are, checkpointed, selectively checkpointed, compiled one by
one. Each is applied from outside, so that it works for any model whose layers lie in module lists."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

aten = torch.ops.aten
# What selective checkpointing keeps: the products, as is usual.
SAVED = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


class NoLayers(Exception):
    """The model has no module list, so that there is no layer to treat."""


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that lie in module lists, but not those inside of such a one (a layer's experts)."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                visit(child)

    visit(model)
    if not found:
        raise NoLayers("has no list of layers")
    return found


def plain(model: nn.Module) -> None:
    """Leaves the layers as they are."""


def checkpointed(model: nn.Module, **options: object) -> None:
    for layer in layers_of(model):
        layer.forward = functools.partial(torch_checkpoint.checkpoint, layer.forward, use_reentrant=False, **options)


def selectively_checkpointed(model: nn.Module) -> None:
    def choose(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in SAVED else CheckpointPolicy.PREFER_RECOMPUTE

    checkpointed(model, context_fn=functools.partial(create_selective_checkpoint_contexts, choose))


def compiled(backend: str) -> Callable[[nn.Module], None]:
    def treat(model: nn.Module) -> None:
        torch.compiler.reset()
        for layer in layers_of(model):
            layer.compile(backend=backend, dynamic=False)

    return treat


MODES: dict[str, Callable[[nn.Module], None]] = {
    "plain": plain,
    "checkpoint": checkpointed,
    "selective": selectively_checkpointed,
    "compiled": compiled("aot_eager"),
}
