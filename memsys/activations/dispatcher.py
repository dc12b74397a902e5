"""The one pair of saved-tensor hooks a forward has: torch runs only the innermost pair, so features never open their
own. A dispatcher asks an ordered list of claimants; the first that claims a tensor answers for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

import torch

from memsys import _tensor
from memsys.activations.span import PassedHandle
from memsys.errors import MemsysError


class Handle(Protocol):
    """What the graph owns in place of a tensor."""

    def unpack(self) -> torch.Tensor: ...


class Claimant(Protocol):
    """Answers for some saved tensors. `stage` orders claimants (0 parameters, 1 streamed weights, 2 recompute
    segments, 3 activation policy); of one stage the innermost stays."""

    stage: int

    def claim(self, tensor: torch.Tensor) -> Handle | None: ...


class _ThreadState(threading.local):
    dispatchers: tuple[Dispatcher, ...] = ()
    # Pairs of hooks that could not be closed in their turn, because another pair was innermost.
    stranded: tuple[object, ...] = ()


_state = _ThreadState()


class Dispatcher:
    """Opens the hooks for one forward; use it as a context manager, once."""

    def __init__(self, claimants: Iterable[Claimant]) -> None:
        self._own = tuple(claimants)
        self._claims = ()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._top: object = None

    def __enter__(self) -> Dispatcher:
        inherited = active_claimants()
        own_stages = {claimant.stage for claimant in self._own}
        merged = (*self._own, *(claimant for claimant in inherited if claimant.stage not in own_stages))
        self.claimants = tuple(sorted(merged, key=lambda claimant: claimant.stage))
        self._claims = tuple(claimant.claim for claimant in self.claimants)
        _close_stranded()
        self._hooks.__enter__()
        self._top = _tensor.top_hooks()
        _state.dispatchers = (*_state.dispatchers, self)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        found = _tensor.top_hooks()
        _state.dispatchers = tuple(dispatcher for dispatcher in _state.dispatchers if dispatcher is not self)
        if not _same_hooks(found, self._top):
            self._claims = ()  # open in torch until the inner pair is closed: until then they pass everything
            _state.stranded = (*_state.stranded, self._top)
            if kind is None:
                raise MemsysError(
                    "saved-tensor hooks were closed out of order: another pair is innermost; a generator that was "
                    "suspended inside a hooks context leaks them; close it before you leave this context"
                )
            return
        self._hooks.__exit__(kind, value, trace)
        _close_stranded()

    def _pack(self, tensor: torch.Tensor) -> Handle:
        if not _tensor.in_backward():
            for claim in self._claims:
                handle = claim(tensor)
                if handle is not None:
                    return handle
        return PassedHandle(tensor)


def active_claimants() -> tuple[Claimant, ...]:
    """Who answers for saved tensors in this thread just now; nobody outside every dispatcher."""
    return _state.dispatchers[-1].claimants if _state.dispatchers else ()


def _unpack(handle: Handle) -> torch.Tensor:
    return handle.unpack()


def _same_hooks(found: object, wanted: object) -> bool:
    return found is not None and wanted is not None and found[0] == wanted[0] and found[1] == wanted[1]


def _close_stranded() -> None:
    top = _tensor.top_hooks()
    while top is not None and any(_same_hooks(top, hooks) for hooks in _state.stranded):
        _state.stranded = tuple(hooks for hooks in _state.stranded if not _same_hooks(hooks, top))
        _tensor.pop_hooks()
        top = _tensor.top_hooks()
