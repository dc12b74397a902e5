"""Patches what holds streamed weights: its forward runs with its block's weights in place, and a conversion of the
model leaves them alone or is refused before anything is changed."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable

import torch

from memsys import _tensor
from memsys.activations.dispatcher import Dispatcher, innermost_claimants
from memsys.errors import UnsupportedError
from memsys.weights.blocks import StreamedWeight
from memsys.weights.session import StreamSession

_COMPILE = "memsys.stream works on eager code: a block's weights change place between visits; do not compile its blocks"
Undo = Callable[[], None]


class Visit:
    """The forward of a block, or of a module in it that holds weights: they are in place inside."""

    def __init__(self, session: StreamSession, index: int) -> None:
        self._session, self._index = session, index

    def __enter__(self) -> None:
        session = self._session
        if _tensor.in_functorch():
            raise UnsupportedError("torch.func transforms do not support saved-tensor hooks, which streaming needs; "
                                   "call memsys.restore(model) first")  # fmt: skip
        session.enter(self._index)
        self._scope = None
        try:
            if _tensor.in_backward():
                session.hold(self._index)
            if torch.is_grad_enabled() and session.claim not in innermost_claimants():
                self._scope = Dispatcher([session.claim], passes_on=True)
                self._scope.__enter__()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if self._scope is not None:
                self._scope.__exit__(kind, *error)
        finally:
            try:
                self._session.leave(self._index)
            except Exception:
                if kind is None:
                    raise


def patch_forward(module: torch.nn.Module, session: StreamSession, index: int) -> Undo:
    """Runs the module's forward as a visit of the session's block; returns what undoes it, in any order of patching."""
    before = module.__dict__.get("forward")
    inner = type(module).forward

    def call(self: torch.nn.Module, args: tuple, kwargs: dict) -> object:
        return inner(self, *args, **kwargs) if before is None else before(*args, **kwargs)

    @_tensor.closed_to_compilers(_COMPILE)
    @functools.wraps(inner if before is None else before)
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if forward.memsys_session is None:
            return call(self, args, kwargs)
        visit = Visit(forward.memsys_session, index)
        _tensor.uncompiled(visit.__enter__)()
        try:
            result = call(self, args, kwargs)
        except BaseException as error:
            _tensor.uncompiled(visit.__exit__)(type(error), error, error.__traceback__)
            raise
        _tensor.uncompiled(visit.__exit__)(None, None, None)
        return result

    forward.memsys_session = session
    module.forward = types.MethodType(forward, module)

    def undo() -> None:
        forward.memsys_session = None
        if getattr(module.__dict__.get("forward"), "__func__", None) is forward:
            if before is None:
                del module.forward
            else:
                module.forward = before

    return undo


def keep_apart(module: torch.nn.Module, inside: Iterable[StreamedWeight]) -> Undo:
    """`module.to(...)` and its kin: streamed weights stay, and what would convert one of those `inside` is refused
    before anything is changed."""
    weights = list(inside)

    def apply(function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
        for weight in weights:
            _check_unchanged(weight, function)
        own = {weight.parameter for weight in weights}
        order = list(module._parameters)
        aside = {name: value for name, value in module._parameters.items() if value in own}
        for name in aside:
            del module._parameters[name]
        try:
            return type(module)._apply(module, function, recurse)
        finally:
            there = {**module._parameters, **aside}
            module._parameters.clear()
            module._parameters.update({name: there[name] for name in order if name in there})

    module.__dict__["_apply"] = apply
    return lambda: module.__dict__.pop("_apply", None) and None


def _check_unchanged(weight: StreamedWeight, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    probe = torch.empty(0, dtype=weight.parameter.dtype, device=weight.parameter.device)
    found = function(probe)
    if (found.dtype, found.device) != (probe.dtype, probe.device):
        raise UnsupportedError(
            f"{weight.name}: a streamed weight can't be converted from {probe.dtype} on {probe.device} to "
            f"{found.dtype} on {found.device}; pack the model as it is wanted, or call memsys.restore first"
        )
