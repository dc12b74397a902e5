"""Selective checkpointing whose CPU_OFFLOAD policies mean what they say in eager mode, where torch recomputes.

Two dispatch modes share a shelf: the forward's puts results on it, the recomputation's takes them from it in the order
of each operation's calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import SAC_IGNORED_OPS, CheckpointPolicy, SelectiveCheckpointContext

from memsys import _tensor
from memsys.activations import default
from memsys.activations.containers import replaced
from memsys.activations.dispatcher import Handle, active_claimants
from memsys.activations.span import PassedHandle
from memsys.errors import InputError, MemsysError, UnsupportedError

PolicyFunction = Callable[..., CheckpointPolicy | bool]
_SAVED = ("MUST_SAVE", "PREFER_SAVE")
_OFFLOADED = ("MUST_CPU_OFFLOAD", "PREFER_CPU_OFFLOAD")


def checkpoint_contexts(policy_fn: PolicyFunction | Sequence[object]) -> tuple[_Putting, _Taking]:
    """The contexts of one checkpointed forward and its recomputation, for the `context_fn` of a checkpoint.

        context_fn = functools.partial(memsys.checkpoint_contexts, policy_fn)
        torch.utils.checkpoint.checkpoint(fn, x, use_reentrant=False, context_fn=context_fn)

    Results of operations for which the policy says *_SAVE stay on the device; for *_CPU_OFFLOAD they are moved (as
    memsys.checkpoint moves inputs; what is under its least size stays) and come back instead of being computed again;
    for *_RECOMPUTE they are computed again. Unlike torch's own contexts they allow backward more than once.

    Args:
        policy_fn: `(context, operation, *args, **kwargs) -> CheckpointPolicy`, as for torch's
            create_selective_checkpoint_contexts (True is *_SAVE, False *_RECOMPUTE), or a list of operations
            (OpOverloads) whose results are moved while the rest is computed again.

    Raises:
        InputError: for a policy_fn that is neither; InPlaceError, in backward, if a result was changed in place.
        UnsupportedError: under torch.compile, which has a meaning of its own for these policies.
    """
    if torch.compiler.is_compiling():
        raise UnsupportedError("checkpoint_contexts is for eager code; under torch.compile use "
                               "torch.utils.checkpoint.create_selective_checkpoint_contexts")  # fmt: skip
    shelf = _Shelf()
    return _Putting(_policy_of(policy_fn), shelf), _Taking(shelf)


def _policy_of(policy_fn: PolicyFunction | Sequence[object]) -> PolicyFunction:
    if callable(policy_fn):
        return policy_fn
    if not isinstance(policy_fn, (list, tuple)):
        raise InputError(f"checkpoint_contexts: wanted a function or a list of operations, found {policy_fn!r}")
    for operation in policy_fn:
        if not isinstance(operation, _tensor.OPERATIONS):
            raise InputError(f"checkpoint_contexts: wanted operations like torch.ops.aten.mm.default, found "
                             f"{operation!r}; name the overload")  # fmt: skip
    moved = frozenset(policy_fn)

    def move_these(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_CPU_OFFLOAD if operation in moved else CheckpointPolicy.PREFER_RECOMPUTE

    return move_these


class _Shelf:
    """For each operation, the handles of its calls' results in the order of the calls; None to compute it again."""

    def __init__(self) -> None:
        self._rows: defaultdict[object, list[object]] = defaultdict(list)

    def put(self, operation: object, results: object) -> None:
        self._rows[operation].append(results)

    def take(self, operation: object, call: int) -> object:
        row = self._rows.get(operation, ())
        if call >= len(row):
            raise MemsysError(
                f"{operation} was called {len(row)} times in forward and once more in its recomputation: a "
                "checkpointed function must do the same both times, whatever global state or random choice it looks at"
            )
        return row[call]


class _Putting(_tensor.DispatchMode):
    """Around the forward."""

    supports_higher_order_operators = True

    def __init__(self, policy_fn: PolicyFunction, shelf: _Shelf) -> None:
        super().__init__()
        self._policy_fn = policy_fn
        self._shelf = shelf

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if func in SAC_IGNORED_OPS:
            return results
        context = SelectiveCheckpointContext(is_recompute=False)
        context.op_output = results
        self._shelf.put(func, _handles_of(results, _name_of(self._policy_fn(context, func, *args, **kwargs))))
        return results


class _Taking(_tensor.DispatchMode):
    """Around the recomputation, once for each backward."""

    supports_higher_order_operators = True

    def __init__(self, shelf: _Shelf) -> None:
        super().__init__()
        self._shelf = shelf
        self._calls: defaultdict[object, int] = defaultdict(int)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __enter__(self) -> _Taking:
        self._calls.clear()  # another backward over a retained graph begins at the first call again
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in SAC_IGNORED_OPS:
            return func(*args, **(kwargs or {}))
        call = self._calls[func]
        self._calls[func] += 1
        handles = self._shelf.take(func, call)
        if handles is None:
            return func(*args, **(kwargs or {}))
        with _tensor.under_autograd():
            # Detached anew, because autograd makes what we return part of a graph.
            return replaced(handles, _Item, lambda item: item.handle.unpack().detach())


class _Item:
    """A tensor's handle among results, told from results that are no tensors."""

    __slots__ = ("handle",)

    def __init__(self, handle: Handle) -> None:
        self.handle = handle


def _name_of(policy: CheckpointPolicy | bool) -> str:
    if isinstance(policy, bool):
        return "MUST_SAVE" if policy else "PREFER_RECOMPUTE"
    if not isinstance(policy, CheckpointPolicy):
        raise InputError(f"a checkpoint policy returned {policy!r}; return a torch.utils.checkpoint.CheckpointPolicy")
    return policy.name


def _handles_of(results: object, policy_name: str) -> object:
    """The results with an _Item for each tensor; None for what is to be computed again."""
    if policy_name in _SAVED:
        handle_of = PassedHandle
    elif policy_name in _OFFLOADED:
        handle_of = _put_away
    else:
        return None
    with _tensor.under_autograd():
        return replaced(results, torch.Tensor, lambda tensor: _Item(handle_of(tensor)))


def _put_away(tensor: torch.Tensor) -> Handle:
    claimants = active_claimants()
    if not claimants and tensor.device.type in ("cpu", "cuda"):
        claimants = default.claimants_for(tensor.device)
    for claimant in claimants:
        handle = getattr(claimant, "put_away", claimant.claim)(tensor)
        if handle is not None:
            return handle
    return PassedHandle(tensor)
