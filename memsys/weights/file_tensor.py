"""A weight in a state dict that is still in its file: read when somebody wants its numbers. So a state dict of a model
larger than memory can be made, filtered (as adapters are saved) and saved shard by shard."""

from __future__ import annotations

from collections.abc import Callable

import torch

from memsys import _tensor
from memsys.errors import InPlaceError
from memsys.weights.descriptions import DESCRIPTIONS

_SAME = frozenset({torch.Tensor.detach, torch.Tensor.data.__get__})


def is_in_place(function: Callable) -> bool:
    """Whether a torch function writes to its first argument."""
    name = getattr(function, "__name__", "")
    is_named_so = name.endswith("_") and not name.endswith("__")
    return is_named_so or name in ("__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__")


class FileTensor(torch.Tensor):
    """Describes the weight; any operation on it reads it, each time anew."""

    @staticmethod
    def __new__(cls, like: torch.Tensor, read: Callable[[], torch.Tensor]) -> FileTensor:
        made = _tensor.description_of(cls, like)
        made._read = read
        made._place = _tensor.storage_of(like)  # what tells one weight from another, without reading any
        made._held = None
        return made

    def read(self) -> torch.Tensor:
        """The weight, as a tensor of its own."""
        return self._read() if self._held is None else self._held

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, FileTensor):
            if function is _tensor.STORAGE_METHOD:
                return first._place
            if function in _SAME:
                return first
            if function is _tensor.ADDRESS_METHOD:
                first._held = first.read()  # the address is used after the call
            elif is_in_place(function) and function not in DESCRIPTIONS:
                raise InPlaceError("a streamed weight in a state dict is read from its file and can't be written to; "
                                   "write to a clone()")  # fmt: skip
        if function in DESCRIPTIONS:
            return _tensor.untouched(function, args, kwargs)
        # What is read has another type, so that this is not met again.
        return function(*_tensor.map_leaves(_read, args), **_tensor.map_leaves(_read, kwargs))

    def __reduce_ex__(self, protocol: int) -> object:
        return self.read().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        return self.read()

    def __repr__(self, **_: object) -> str:
        return f"FileTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return function(*_tensor.map_leaves(_read, args), **_tensor.map_leaves(_read, kwargs or {}))


def _read(value: object) -> object:
    return value.read() if isinstance(value, FileTensor) else value
