"""Finds the ReLU FFNs of a running model by what they do, not by their names: the input of one linear layer is the
ReLU of another's output, to the last bit. So a ReLU that is a function, a module or a configuration's is found alike,
and a GELU that merely has few large values is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from memsys import _tensor

# Between up and down lies at most a gate; another two for good measure.
_RECENT = 4


class Ffn(NamedTuple):
    """Names of the linear layers of one FFN; `gate` is "" without one. `activation`: what makes neurons inactive."""

    up: str
    gate: str
    down: str
    activation: str  # "relu", "relu squared" or "gated relu"


class _Seen(NamedTuple):
    name: str
    output: Tensor
    version: int


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that multiply by a matrix, by name: nn.Linear, transformers' Conv1D, and what wraps one and says its
    sizes (an adapter, whose inner layers then do not count)."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_linear(module) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def is_linear(module: nn.Module) -> bool:
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return is_conv1d or all(isinstance(size, int) for size in sizes)


@contextmanager
def probe(model: nn.Module, note: Callable[[Ffn, Tensor], None]) -> Iterator[None]:
    """Inside, `note(ffn, active)` is called for every call of a ReLU FFN; `active` is bool (..., neurons)."""
    recent: deque[_Seen] = deque(maxlen=_RECENT)
    known: dict[str, Ffn] = {}

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            if args and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].dim() >= 2:
                # What was recognised once is counted from then on, also where no neuron or every one is active.
                ffn = known.get(name) or _recognise(name, args[0], recent)
                if ffn is not None:
                    known[name] = ffn
                    note(ffn, args[0] != 0)
            if isinstance(output, Tensor):
                recent.append(_Seen(name, output, _tensor.version_of(output)))

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in linear_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recognise(down: str, x: Tensor, recent: deque[_Seen]) -> Ffn | None:
    """The FFN whose neurons `x` holds, or None; where no neuron or every one is active, nothing can be told."""
    before = [seen for seen in reversed(recent) if seen.output.shape == x.shape and seen.output.dtype == x.dtype]
    if not before or not (x == 0).any() or not x.any():
        return None
    is_positive = bool((x >= 0).all())
    for seen in before if is_positive else ():
        # An operation in place overwrote the output itself; what is left of it has no negative and some zeros.
        if _tensor.storage_of(seen.output) is _tensor.storage_of(x) and _is_changed(seen):
            return Ffn(seen.name, "", down, "relu")
        if not (seen.output < 0).any():
            continue
        positive = seen.output.clamp_min(0)
        if torch.equal(x, positive):
            return Ffn(seen.name, "", down, "relu")
        if torch.equal(x, positive.square()):
            return Ffn(seen.name, "", down, "relu squared")
    for gate in before:
        for up in before:
            if gate is not up and (gate.output < 0).any() and torch.equal(x, gate.output.clamp_min(0) * up.output):
                return Ffn(up.name, gate.name, down, "gated relu")
    return None


def _is_changed(seen: _Seen) -> bool:
    """Whether the output was written over since; so it may be where torch does not count (inference mode)."""
    version = _tensor.version_of(seen.output)
    return version == -1 or version != seen.version
