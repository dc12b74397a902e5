"""What happens below autograd while a block is run on trial or again: attention is watched, or answered from what was
saved; whatever is random is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from memsys import _tensor
from memsys.activations.dispatcher import same_hooks
from memsys.activations.rows.refused import RefusedError

Answer = Callable[[int, dict[str, object]], tuple[object, ...]]
_aten = torch.ops.aten
# Query and output are [batch, heads, sequence, width]; of the other results logsumexp has the sequence last.
OPERATIONS = frozenset({
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
})  # fmt: skip
ROW_DIM = 2
_MASKS = ("attn_mask", "attn_bias")
_RANDOM = torch.Tag.nondeterministic_seeded
_CHOICE = _aten._fused_sdp_choice.default  # tagged so because attention may drop out; here it is asked itself


class AttentionCall(NamedTuple):
    """One attention operation of a run."""

    operation: object
    query_shape: torch.Size
    results: tuple[object, ...]


class AttentionMode(_tensor.DispatchMode):
    """`answer(number, arguments)` gives the results of the number-th attention operation from its arguments by name;
    None: they are computed.

    With `in_double`, what a block casts to a narrower float stays float64, so that a trial can be exact.
    """

    supports_higher_order_operators = True

    def __init__(self, answer: Answer | None = None, in_double: bool = False) -> None:
        super().__init__()
        self._answer = answer
        self._in_double = in_double
        self.calls: list[AttentionCall] = []
        self.hooks: object = None  # the saved-tensor hooks that should be innermost, if they matter

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.hooks is not None and not same_hooks(_tensor.top_hooks(), self.hooks):
            raise RefusedError("it opens saved-tensor hooks of its own, as a checkpoint does")
        if func in OPERATIONS:
            return self._attend(func, args, kwargs)
        if func is not _CHOICE and _RANDOM in getattr(func, "tags", ()):
            raise RefusedError(f"it runs {func}, whose result is random: set dropout to 0")
        if self._in_double and func is _aten._to_copy.default and _is_narrow(kwargs.get("dtype")):
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)

    def _attend(self, func: object, args: tuple, kwargs: dict) -> tuple[object, ...]:
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if named.get("dropout_p", 0.0) != 0.0:
            raise RefusedError("its attention drops out at random: set dropout to 0")
        if any(named.get(name) is not None for name in _MASKS):
            raise RefusedError("its attention has a mask; only is_causal, or none, can be run again by rows")
        results = func(*args, **kwargs) if self._answer is None else self._answer(len(self.calls), named)
        self.calls.append(AttentionCall(func, named["query"].shape, tuple(results)))
        return results


def _is_narrow(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point and dtype != torch.float64


def rows_of(results: tuple[object, ...], begin: int, end: int) -> tuple[object, ...]:
    """An operation's results for query rows [begin, end) alone, laid out as the operation lays them out."""
    output = results[0]
    count = output.shape[ROW_DIM]
    return tuple(
        value.narrow(ROW_DIM, begin, end - begin).clone()
        if isinstance(value, torch.Tensor) and value.ndim > ROW_DIM and value.shape[ROW_DIM] == count
        else value
        for value in results
    )
