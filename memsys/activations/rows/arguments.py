"""A block's arguments: its tensors, what stands around them, and along which dimension each has the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from memsys import _tensor
from memsys.activations.containers import replaced
from memsys.activations.rows.refused import RefusedError

# What can be handed to the block a second time as it is.
_VALUES = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size, Enum)


class _Slot(int):
    """The place among the tensors of one that stood here."""


class Arguments:
    """One call's arguments. `tensors` are distinct: one that was passed twice is one tensor again in `rebuilt`."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        found: dict[int, tuple[_Slot, torch.Tensor]] = {}

        def take(tensor: torch.Tensor) -> _Slot:
            return found.setdefault(id(tensor), (_Slot(len(found)), tensor))[0]

        self.skeleton = replaced((args, kwargs), torch.Tensor, take)
        self.tensors = tuple(tensor for _, tensor in found.values())

    def check(self) -> None:
        """Raises RefusedError for what a second run might find changed, or change: caches above all."""
        for name, value in _named(self.skeleton):
            if not isinstance(value, _VALUES):
                raise RefusedError(f"its argument {name} is a {type(value).__name__}, which may change between two "
                                   "runs (for a cache: use_cache=False)")  # fmt: skip
        if not all(_tensor.is_plain(tensor) for tensor in self.tensors):
            raise RefusedError("an argument is of a tensor subclass, or sparse")

    def candidates(self) -> list[int]:
        """Dimensions of the first floating tensor that may be the sequence: [batch, sequence, width] first."""
        x = self._lead()
        if x is None:
            return []
        dims = [x.ndim - 2, *range(x.ndim - 2)]
        return [dim for dim in dims if x.shape[dim] > 1] if x.ndim > 1 else []

    def row_count(self, dim: int) -> int:
        return self._lead().shape[dim]

    def row_dims(self, dim: int) -> tuple[int | None, ...]:
        """For each tensor the dimension that runs along the sequence, if the lead's is `dim`; None: it has none.

        Raises RefusedError where that can't be told, as for an attention mask.
        """
        lead, count = self._lead(), self.row_count(dim)
        dims = []
        for tensor in self.tensors:
            fitting = [place for place, size in enumerate(tensor.shape) if size == count]
            if len(fitting) > 1 and tensor.ndim == lead.ndim and dim in fitting and tensor.is_floating_point():
                fitting = [dim]
            elif len(fitting) > 1 and tensor.dtype in (torch.int64, torch.int32):
                fitting = fitting[-1:]  # position ids, [batch, sequence]
            if len(fitting) > 1:
                raise RefusedError(f"an argument of shape {list(tensor.shape)} may be an attention mask, or runs along "
                                   "the sequence twice; leave masks out (is_causal)")  # fmt: skip
            dims.append(fitting[0] if fitting else None)
        return tuple(dims)

    def signature(self, dims: Sequence[int | None]) -> tuple[object, ...]:
        """What a verdict on the block depends on: everything but values and the length of the sequence."""
        shapes = tuple(
            (tensor.dtype, tensor.device, tensor.requires_grad, dim, _order(tensor), *_without(tensor.shape, dim))
            for tensor, dim in zip(self.tensors, dims, strict=True)
        )
        values = tuple((name, type(value), value) for name, value in _named(self.skeleton))
        return shapes, values, _form(self.skeleton)

    def rebuilt(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple, dict]:
        """args and kwargs with other tensors, in containers built anew."""
        return rebuilt(self.skeleton, tensors)

    def _lead(self) -> torch.Tensor | None:
        return next((tensor for tensor in self.tensors if tensor.is_floating_point() and tensor.ndim > 1), None)


def rebuilt(skeleton: tuple[tuple, dict], tensors: Sequence[torch.Tensor]) -> tuple[tuple, dict]:
    """What `Arguments.rebuilt` gives, from the skeleton alone, which holds no tensor."""
    return replaced(skeleton, _Slot, lambda slot: tensors[slot])


def sliced(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], begin: int, end: int,
           needs_grad: Sequence[bool]) -> list[torch.Tensor]:  # fmt: skip
    """Rows [begin, end) of each tensor that has rows, as leaves; dense, with the dimensions in the tensor's order."""
    rows = []
    for tensor, dim, needs in zip(tensors, dims, needs_grad, strict=True):
        part = tensor.detach() if dim is None else tensor.detach().narrow(dim, begin, end - begin)
        part = part if dim is None or part.is_contiguous() else part.clone(memory_format=torch.preserve_format)
        rows.append(part.requires_grad_(needs))
    return rows


def _named(value: object, name: str = "") -> list[tuple[str, object]]:
    """The values that are no tensors, each with its place."""
    if isinstance(value, _Slot):
        return []
    if type(value) in (tuple, list):
        return [leaf for place, item in enumerate(value) for leaf in _named(item, f"{name}[{place}]" if name else "")]
    if type(value) is dict:
        return [leaf for key, item in value.items() for leaf in _named(item, f"{name}[{key!r}]" if name else str(key))]
    return [(name or "(positional)", value)]


def _form(value: object) -> object:
    """Where the tensors stand."""
    if isinstance(value, _Slot):
        return int(value)
    if type(value) in (tuple, list):
        return (type(value), *(_form(item) for item in value))
    return tuple((key, _form(item)) for key, item in value.items()) if type(value) is dict else None


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """How the dimensions follow one another in memory: where they are in order, a reshape is a view."""
    return tuple(sorted(range(tensor.ndim), key=lambda dim: -tensor.stride(dim)))


def _without(shape: torch.Size, dim: int | None) -> tuple[int | None, ...]:
    return tuple(None if place == dim else size for place, size in enumerate(shape))
