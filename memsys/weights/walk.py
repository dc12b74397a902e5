"""Tells what kind of visit the present one is: whether a backward will follow decides which blocks are worth keeping.

Torch does not say beforehand; what followed the last forward of the same kind does.
"""

from __future__ import annotations

import torch

from memsys import _C, _tensor


class Walk:
    """The visits of one model's blocks, as far as they tell what comes next."""

    def __init__(self, is_trained: bool) -> None:
        """`is_trained`: whether the model has anything to train, at the start."""
        # By (gradients are recorded): whether a backward followed.
        self._is_followed = {True: is_trained, False: False}
        self._kind: bool | None = None  # of the forward that nothing has followed yet
        self._last = -1

    def visit(self, index: int) -> object:
        """The kind of a forward visit of block `index`."""
        if _tensor.in_backward():  # a checkpoint computes the block again
            self.note_backward(index)
            return _C.Visit.backward
        kind = torch.is_grad_enabled()
        if self._kind is not None and index <= self._last:
            self._is_followed[self._kind] = False  # another pass began, and no backward between
        self._kind, self._last = kind, index
        return _C.Visit.forward if self._is_followed[kind] else _C.Visit.forward_only

    def note_backward(self, index: int) -> None:
        """Backward wants block `index`."""
        if self._kind is not None:
            self._is_followed[self._kind] = True
            self._kind = None
