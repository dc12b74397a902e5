"""memsys.offload, offload_activations, stats and restore: patching one module's forward, and undoing it."""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from memsys import _tensor
from memsys.activations.policy import Policy
from memsys.activations.session import OffloadOptions, Session
from memsys.activations.stats import OffloadStats
from memsys.errors import InputError, UnsupportedError

_REMEDY = (
    "memsys.offload works on eager code and on layers compiled one by one: compile the layers "
    "(`for layer in model.layers: layer.compile()`) and not the offloaded model, or call memsys.restore(model) first"
)


def offload(
    model: torch.nn.Module,
    device_budget: int | str | None = None,
    host_budget: int | str | None = None,
    disk_budget: int | str | None = None,
    spill_dir: str | os.PathLike | None = None,
    policy: str | Policy = "auto",
    plan: object = None,
    min_bytes: int | None = None,
    exclude: tuple[str, ...] = (),
    return_memory: bool = False,
    verify: bool = False,
) -> torch.nn.Module:
    """Makes the model's saved activations leave device memory in forward and come back for backward, bit for bit.

    The same module comes back, its class and its state untouched; only its `forward` is patched. What autograd saves
    outside the model's forward (a loss computed by the caller) is not seen.

    Args:
        model: any nn.Module on a CPU or a CUDA device.
        device_budget: bytes, or "20GiB", or "80%" (of free device memory) that saved tensors kept on the device,
            memsys's buffers and transfers in flight may use together. On a CPU the device is RAM.
        host_budget: of host memory for copies. disk_budget: of the spill file; by default 80 % of the free disk.
        spill_dir: folder of the spill file, which has no name and cannot outlive the process.
        policy: "auto", "all", "inputs", or a callable SavedTensor -> Decision. With a device budget "auto" records the
            first step, with everything moved, and plans from it for those that follow; stats(model).plan tells which
            plan is followed, and what it predicted.
        plan: what memsys.plan returned, or the path it was saved to; brings its budgets along.
        min_bytes: tensors smaller than this stay; by default 256 KiB.
        exclude: patterns of submodule names whose saved tensors stay.
        return_memory: on a CPU, also give the heap that torch freed back to the system whenever the process has grown.
        verify: checksum host copies too (files always are), and move what auto would compute again, to compare it.

    Raises:
        InputError: (a ValueError) for options that make no sense; SpillError for a spill folder that can't be used.

    After MEMO, "Fine-grained Tensor Management for Ultra-long Context LLM Training" (SIGMOD'25).
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"offload: wanted a torch.nn.Module, found {type(model).__name__}; for a plain function use "
                         "`with memsys.offload_activations(): ...`")  # fmt: skip
    options = OffloadOptions(device_budget, host_budget, disk_budget, spill_dir, policy, plan, min_bytes,
                             tuple(exclude), return_memory, verify)  # fmt: skip
    if session_of(model) is not None:
        restore(model)
    model.forward = types.MethodType(_patched(model, Session(options, model)), model)
    return model


def _patched(model: torch.nn.Module, session: Session) -> Callable:
    """A function to bind as `forward`. It takes its module as `self`, so that a deep copy runs its own weights, and is
    named `forward`, so that a pickle finds the class's."""
    before = model.__dict__.get("forward")  # somebody else's patch, which goes on working
    if isinstance(before, types.MethodType) and before.__self__ is model:
        inner = before.__func__
    elif before is not None:

        def inner(_: torch.nn.Module, *args: object, **kwargs: object) -> object:
            return before(*args, **kwargs)
    else:

        def inner(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
            return type(self).forward(self, *args, **kwargs)

    @_tensor.closed_to_compilers(_REMEDY)
    def offloaded(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if not forward.memsys_session or not torch.is_grad_enabled():
            return inner(self, *args, **kwargs)
        if _tensor.in_functorch():
            raise UnsupportedError("torch.func transforms do not support saved-tensor hooks; " + _REMEDY)
        with _Scope(forward.memsys_session, self):
            return inner(self, *args, **kwargs)

    # Compilers may trace this frame, and find in it one call that they may not: so that they say why.
    @functools.wraps(type(model).forward if before is None else before)
    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        return offloaded(self, *args, **kwargs)

    forward.__name__ = "forward"
    forward.memsys_session = session
    forward.memsys_before = before
    return forward


class _Scope:
    """One forward of a session, closed to compilers that look into what an eager forward calls."""

    def __init__(self, session: Session, model: torch.nn.Module) -> None:
        self._session, self._model = session, model

    @_tensor.closed_to_compilers(_REMEDY)
    def __enter__(self) -> None:
        self._scope = _tensor.uncompiled(_open_scope)(self._session, self._model)

    @_tensor.closed_to_compilers(_REMEDY)
    def __exit__(self, *error: object) -> None:
        _tensor.uncompiled(_close_scope)(self._scope, *error)


def _open_scope(session: Session, model: torch.nn.Module) -> AbstractContextManager:
    scope = session.forward(model)
    scope.__enter__()
    return scope


def _close_scope(scope: AbstractContextManager, *error: object) -> None:
    scope.__exit__(*error)


def function_of(model: torch.nn.Module) -> Callable | None:
    """Our patch on the model, also where others have patched over it."""
    found = model.__dict__.get("forward")
    seen = 0
    while found is not None and seen < 16:
        function = getattr(found, "__func__", found)
        if "memsys_session" in getattr(function, "__dict__", {}) and "memsys_before" in function.__dict__:
            return function
        found = getattr(function, "__wrapped__", None) or getattr(model, "_original_forward", None)
        seen += 1
    return None


def session_of(model: torch.nn.Module) -> Session | None:
    """The session of an offloaded model; of a DDP or FSDP wrapper, that of the module inside."""
    inner = getattr(model, "module", None)
    function = function_of(model) or (function_of(inner) if isinstance(inner, torch.nn.Module) else None)
    return function.memsys_session if function is not None else None


def stats(model: torch.nn.Module) -> OffloadStats:
    """What offloading did to this model so far. Raises InputError if the model is not offloaded."""
    session = session_of(model) if isinstance(model, torch.nn.Module) else None
    if session is None:
        raise InputError("stats: this model is not offloaded; call memsys.offload(model) first")
    return session.stats()


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undoes offload, also below or above other patches of `forward`; does nothing to a model without. Graphs that
    were made before can still run backward."""
    function = function_of(model)
    if function is None:
        return model
    session, function.memsys_session = function.memsys_session, None
    top = model.__dict__.get("forward")
    if getattr(top, "__func__", None) is function:
        if function.memsys_before is None:
            del model.forward
        else:
            model.forward = function.memsys_before
    if session is not None:
        session.close()
    return model
