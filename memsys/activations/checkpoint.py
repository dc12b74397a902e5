"""memsys.checkpoint: torch's checkpoint whose saved inputs are moved too, those of keywords and containers included.

A checkpointed segment keeps its inputs for the recomputation; over many layers and a long sequence they are the
memory that is left. Torch hands positional inputs to the saved-tensor hooks, and holds keyword inputs for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from memsys import _tensor
from memsys.activations import default
from memsys.activations.containers import replaced
from memsys.activations.dispatcher import Dispatcher
from memsys.errors import UnsupportedError

_TORCH_OPTIONS = ("preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")


def checkpoint(fn: Callable, *args: object, use_reentrant: bool = False, **kwargs: object) -> object:
    """Runs `fn(*args, **kwargs)` and recomputes it in backward; its tensor inputs leave the device in between.

    A drop-in for `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`. Inputs of 256 KiB or more go to a file
    from a CPU and to host memory from a GPU; inside memsys.offload or offload_activations, where its policy says;
    inside anybody else's saved-tensor hooks, where those say. Under torch.compile it is torch's own.

    Args:
        fn: what to run twice; it must do the same both times.
        args, kwargs: its inputs. Tensors are moved, also in plain tuples, lists and dictionaries; the recomputation
            then gets containers of its own.
        use_reentrant: False.
        kwargs may also hold torch's options: preserve_rng_state, context_fn (see memsys.checkpoint_contexts),
            determinism_check, debug, early_stop.

    Raises:
        UnsupportedError: for use_reentrant=True, which saves its inputs by other means.
    """
    if use_reentrant:
        raise UnsupportedError("checkpoint: use_reentrant=True was asked for, which hides its inputs' containers and "
                               "drops keyword inputs; leave it out (or False): results are the same")  # fmt: skip
    if torch.compiler.is_compiling():
        return torch_checkpoint(fn, *args, use_reentrant=False, **kwargs)
    options = {name: kwargs.pop(name) for name in _TORCH_OPTIONS if name in kwargs}
    segment = _Segment(fn, args, kwargs)
    tensors = segment.take_inputs()
    with _mover_of(tensors):
        return torch_checkpoint(segment, *tensors, use_reentrant=False, **options)


def _mover_of(tensors: list[torch.Tensor]) -> Dispatcher | nullcontext:
    """The hooks that take a segment's inputs: whoever has hooks open already, else the device's default session."""
    # Inside other hooks the recomputation must find the same ones as the forward did, so nothing is opened there.
    if not tensors or not torch.is_grad_enabled() or _tensor.top_hooks() is not None:
        return nullcontext()
    largest = max(tensors, key=lambda tensor: tensor.numel() * tensor.element_size())
    if largest.device.type not in ("cpu", "cuda"):
        return nullcontext()
    return Dispatcher(default.claimants_for(largest.device))


class _Slot(int):
    """The place among a segment's tensors of one that stood here."""


class _Segment:
    """`fn` as a function of the tensors in its inputs alone, so that the graph owns them and nothing else does."""

    def __init__(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        self._fn = fn
        # The forward gets the caller's own objects: what it does to them, the caller sees.
        self._first: tuple[tuple, dict] | None = (args, kwargs)
        self._slots: tuple[tuple, dict] | None = None

    def take_inputs(self) -> list[torch.Tensor]:
        """The tensors, to be passed to each run in this order; before the first."""
        tensors: list[torch.Tensor] = []

        def take(tensor: torch.Tensor) -> _Slot:
            tensors.append(tensor)
            return _Slot(len(tensors) - 1)

        self._slots = replaced(self._first, torch.Tensor, take)
        return tensors

    def __call__(self, *tensors: torch.Tensor) -> object:
        if self._first is not None:
            (args, kwargs), self._first = self._first, None
        else:
            args, kwargs = replaced(self._slots, _Slot, lambda slot: tensors[slot])
        return self._fn(*args, **kwargs)
