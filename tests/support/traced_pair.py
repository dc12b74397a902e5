"""A traceable wrapper subclass, the least one can write: two tensors that act as one, as DTensor and quantized do."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class Pair(Tensor):
    """The sum of two tensors of one shape, kept apart; every operation acts on each (so it must be linear or 1:1)."""

    @staticmethod
    def __new__(cls, first: Tensor, second: Tensor) -> Pair:
        return Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype, device=first.device)

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["first", "second"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> Pair:
        return Pair(inner["first"], inner["second"])

    @classmethod
    def __torch_dispatch__(cls, operation: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        def half(name: str) -> Any:
            chosen = tree_map(
                lambda item: getattr(item, name) if isinstance(item, Pair) else item, (args, kwargs or {})
            )
            return operation(*chosen[0], **chosen[1])

        first, second = half("first"), half("second")
        if not isinstance(first, Tensor):
            return first
        return Pair(first, second)
