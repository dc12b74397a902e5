"""The one pair of saved-tensor hooks a forward has: torch runs only the innermost pair, so features never open their
own. A dispatcher asks an ordered list of claimants; the first that claims a tensor answers for it. What nobody claims
goes to somebody else's hooks where such are open and no claimant of ours moves activations: checkpoint goes on working.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from memsys import _tensor
from memsys.activations.span import PassedHandle
from memsys.errors import MemsysError


class Handle(Protocol):
    """What the graph owns in place of a tensor."""

    def unpack(self) -> torch.Tensor: ...


class Claimant(Protocol):
    """Answers for some saved tensors. `stage` orders claimants (-1 who only counts, 0 streamed weights, 1 parameters,
    2 recompute segments, 3 activation policy); of one stage the innermost stays. `in_backward`: also for what is saved
    while a backward runs, as when a checkpoint computes again."""

    stage: int
    in_backward: bool

    def claim(self, tensor: torch.Tensor) -> Handle | None: ...


class _ThreadState(threading.local):
    dispatchers: tuple[Dispatcher, ...] = ()
    # Pairs of hooks that could not be closed in their turn, because another pair was innermost.
    stranded: tuple[object, ...] = ()


_state = _ThreadState()


class _Foreign:
    """Stands for what somebody else's hooks made of a tensor."""

    __slots__ = ("packed", "unpack_hook")

    def __init__(self, packed: object, unpack_hook: Callable[[object], torch.Tensor]) -> None:
        self.packed, self.unpack_hook = packed, unpack_hook

    def unpack(self) -> torch.Tensor:
        return self.unpack_hook(self.packed)


class Dispatcher:
    """Opens the hooks for one forward; use it as a context manager, once."""

    def __init__(self, claimants: Iterable[Claimant], passes_on: bool = False) -> None:
        """`passes_on`: where somebody else's hooks are innermost, they get what nobody claims."""
        self._own = tuple(claimants)
        self._passes_on = passes_on
        self._claims = self._backward_claims = ()
        self._foreign: tuple[Callable, Callable] | None = None
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._top: object = None

    def __enter__(self) -> Dispatcher:
        top = _tensor.top_hooks()
        is_foreign = self._passes_on and top is not None and top[1] is not _unpack
        self._foreign = top if is_foreign else None
        inherited = () if is_foreign else active_claimants()
        own_stages = {claimant.stage for claimant in self._own}
        merged = (*self._own, *(claimant for claimant in inherited if claimant.stage not in own_stages))
        self.claimants = tuple(sorted(merged, key=lambda claimant: claimant.stage))
        self._claims = tuple(claimant.claim for claimant in self.claimants)
        self._backward_claims = tuple(claimant.claim for claimant in self.claimants if claimant.in_backward)
        _close_stranded()
        before = _state.dispatchers
        try:
            self._hooks.__enter__()
            self._top = _tensor.top_hooks()
            _state.dispatchers = (*before, self)
        except BaseException:  # an interrupt: nobody would close them
            _state.dispatchers = before
            top = _tensor.top_hooks()
            if top is not None and top[0] == self._pack:
                _tensor.pop_hooks()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        found = _tensor.top_hooks()
        _state.dispatchers = tuple(dispatcher for dispatcher in _state.dispatchers if dispatcher is not self)
        if not same_hooks(found, self._top):
            # Open in torch until the inner pair is closed: until then they pass everything.
            self._claims = self._backward_claims = ()
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
        for claim in self._backward_claims if _tensor.in_backward() else self._claims:
            handle = claim(tensor)
            if handle is not None:
                return handle
        if self._foreign is not None:
            pack_hook, unpack_hook = self._foreign
            return _Foreign(pack_hook(tensor), unpack_hook)
        return PassedHandle(tensor)


def active_claimants() -> tuple[Claimant, ...]:
    """Who answers for saved tensors in this thread just now; nobody outside every dispatcher."""
    return _state.dispatchers[-1].claimants if _state.dispatchers else ()


def innermost_claimants() -> tuple[Claimant, ...]:
    """The claimants that a tensor saved just now would meet: none where somebody else's hooks are innermost."""
    top = _tensor.top_hooks()
    return active_claimants() if top is not None and top[1] is _unpack else ()


def _unpack(handle: Handle) -> torch.Tensor:
    return handle.unpack()


def same_hooks(found: object, wanted: object) -> bool:
    """Whether two pairs that `top_hooks` gave are one."""
    return found is not None and wanted is not None and found[0] == wanted[0] and found[1] == wanted[1]


def _close_stranded() -> None:
    top = _tensor.top_hooks()
    while top is not None and any(same_hooks(top, hooks) for hooks in _state.stranded):
        _state.stranded = tuple(hooks for hooks in _state.stranded if not same_hooks(hooks, top))
        _tensor.pop_hooks()
        top = _tensor.top_hooks()
