"""Whether a block can be run again by rows, which of its saved tensors have rows, and how long a run takes.

Nothing is believed: a copy of the block in float64, its parameters disturbed so that no zero hides a dependence, is run
on a few positions and on their last ones, and everything it saves must agree to 1e-9; then the block itself, in its own
dtype and on its own device, says which saved tensor is which.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from memsys import _tensor
from memsys.activations.rows.arguments import Arguments, sliced
from memsys.activations.rows.attention import AttentionMode
from memsys.activations.rows.fingerprint import fingerprint
from memsys.activations.rows.geometry import LEAST_ROWS
from memsys.activations.rows.refused import Declined, Enough, RefusedError
from memsys.activations.rows.trial import Entry, Source, agree, answer_from, run, sources

logger = logging.getLogger("memsys")

_TRIAL_ROWS = 7
_LEAST_TRIAL_ROWS = 4
_EXACT = 1e-9
# What other shapes of the same operation may do to the last bits, relative to the largest value.
_TOLERANCES = {torch.float64: _EXACT, torch.float32: 1e-3}
_COARSE = 0.05
_LIMIT = 256  # verdicts remembered


@dataclass(frozen=True)
class RowProfile:
    """A block that can be run again by rows.

    dims: for each tensor among its arguments the dimension of the sequence; entries: its saved tensors in their order;
    attention: for each attention operation and result, a Source (the index of the saved tensor that holds it) or what
    stands for it; last: index of the last saved tensor that has rows: a run ends there.
    """

    dim: int
    dims: tuple[int | None, ...]
    entries: tuple[Entry, ...]
    attention: tuple[tuple[object, ...], ...]
    last: int

    def row_count(self, arguments: Arguments) -> int:
        return arguments.row_count(self.dim)


_verdicts: dict[object, RowProfile | Declined] = {}
_times: dict[object, float] = {}


def profile(block: torch.nn.Module, args: tuple, kwargs: dict) -> RowProfile | Declined:
    """The verdict on a block called with these arguments; remembered, for all blocks and lengths alike.

    Runs the block on at most seven rows. Leaves parameters, buffers, gradients and random generators as they are.
    """
    arguments = Arguments(args, kwargs)
    try:
        arguments.check()
        candidates = arguments.candidates()
    except RefusedError as refused:
        return Declined(str(refused))
    reasons = []
    whole = fingerprint(block)
    for dim in candidates:
        try:
            dims = arguments.row_dims(dim)
        except RefusedError as refused:
            return Declined(str(refused))
        if arguments.row_count(dim) < _LEAST_TRIAL_ROWS:
            reasons.append(f"it has fewer than {_LEAST_TRIAL_ROWS} positions")
            continue
        key = (whole, dim, arguments.signature(dims), _autocast_key(arguments))
        if key not in _verdicts:
            while len(_verdicts) >= _LIMIT:
                _verdicts.pop(next(iter(_verdicts)))
            _verdicts[key] = _judged(block, arguments, dim, dims)
        verdict = _verdicts[key]
        if isinstance(verdict, RowProfile):
            return verdict
        reasons.append(verdict.reason)
    return Declined(reasons[0] if reasons else "none of its arguments is a floating tensor with several positions")


def remake_us(block: torch.nn.Module, args: tuple, kwargs: dict, verdict: RowProfile) -> float:
    """How long a run of all rows takes, attention left out, in microseconds; measured once for each shape."""
    arguments = Arguments(args, kwargs)
    key = (fingerprint(block), tuple((tensor.shape, tensor.dtype) for tensor in arguments.tensors))
    if key not in _times:
        count = verdict.row_count(arguments)
        inputs = sliced(arguments.tensors, verdict.dims, 0, count, _needs_grad(arguments))
        _wait(inputs)
        begin = time.perf_counter()
        _timed_run(block, arguments, inputs, verdict)
        _wait(inputs)
        _times[key] = (time.perf_counter() - begin) * 1e6
    return _times[key]


def _judged(
    block: torch.nn.Module, arguments: Arguments, dim: int, dims: Sequence[int | None]
) -> RowProfile | Declined:
    count = min(_TRIAL_ROWS, arguments.row_count(dim))
    try:
        _check_exactly(block, arguments, dims, count)
        return _structure(block, arguments, dim, dims, count)
    except RefusedError as refused:
        return Declined(str(refused))
    except Exception as error:
        logger.debug("a trial run of %s failed", type(block).__name__, exc_info=True)
        return Declined(f"a trial run raised {type(error).__name__}: {str(error)[:200]}")


def _check_exactly(block: torch.nn.Module, arguments: Arguments, dims: Sequence[int | None], count: int) -> None:
    """Raises RefusedError unless a copy in float64 on the CPU is token-local to 1e-9, and changes nothing."""
    generator = torch.Generator().manual_seed(1)
    twin = _twin(block, generator)
    small = sliced(arguments.tensors, dims, 0, count, [False] * len(dims))
    inputs = [_disturbed(tensor.cpu(), generator, needs)
              for tensor, needs in zip(small, _needs_grad(arguments), strict=True)]  # fmt: skip
    buffers = {name: value.clone() for name, value in twin.named_buffers()}
    with _no_autocast(arguments):
        _agreement(twin, arguments, inputs, dims, count, (count // 2, count - LEAST_ROWS, 0), _EXACT, in_double=True)
    if any(not torch.equal(value, buffers[name]) for name, value in twin.named_buffers()):
        raise RefusedError("its forward changes a buffer, as BatchNorm does while training")


def _structure(block: torch.nn.Module, arguments: Arguments, dim: int, dims: Sequence[int | None],
               count: int) -> RowProfile:  # fmt: skip
    """Which saved tensor is which, from the block itself."""
    needs = _needs_grad(arguments)
    inputs = sliced(arguments.tensors, dims, 0, count, needs)
    dtype = next(tensor.dtype for tensor in inputs if tensor.is_floating_point())
    tolerance = _COARSE if _is_autocast(arguments) else _TOLERANCES.get(dtype, _COARSE)
    full, entries = _agreement(block, arguments, inputs, dims, count, (count // 2,), tolerance, in_double=False)
    last = max((index for index, entry in enumerate(entries) if entry.row_dim is not None), default=-1)
    if last < 0:
        raise RefusedError("it saves nothing that has rows")
    return RowProfile(dim, tuple(dims), tuple(entries), tuple(tuple(row) for row in sources(full)), last)


def _agreement(block: torch.nn.Module, arguments: Arguments, inputs: list[torch.Tensor], dims: Sequence[int | None],
               count: int, begins: Sequence[int], tolerance: float, in_double: bool) -> tuple:  # fmt: skip
    """The full run, and what its saved tensors are by the first of the runs on rows [begin, count)."""
    args, kwargs = arguments.rebuilt(inputs)
    versions = [_tensor.version_of(tensor) for tensor in inputs]
    full = run(lambda: block.forward(*args, **kwargs), AttentionMode(in_double=in_double))
    if versions != [_tensor.version_of(tensor) for tensor in inputs]:
        raise RefusedError("its forward changes an argument in place")
    needs = [tensor.requires_grad for tensor in inputs]
    storages = [_tensor.storage_of(tensor) for tensor in inputs]
    found = []
    for begin in begins:
        part_args, part_kwargs = arguments.rebuilt(sliced(inputs, dims, begin, count, needs))
        mode = AttentionMode(answer_from(full, begin, count), in_double)
        part = run(lambda args=part_args, kwargs=part_kwargs: block.forward(*args, **kwargs), mode)
        found.append(agree(full, part, storages, begin, count, tolerance))
    return full, found[0]


def _timed_run(block: torch.nn.Module, arguments: Arguments, inputs: list[torch.Tensor], verdict: RowProfile) -> None:
    mode = AttentionMode(lambda number, named: _blank(verdict.attention[number], named))
    seen = 0

    def pack(_: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        if seen > verdict.last:
            raise Enough

    args, kwargs = arguments.rebuilt(inputs)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None)
    with torch.enable_grad(), hooks, mode:
        try:
            block.forward(*args, **kwargs)
        except Enough:
            return


def _blank(results: tuple[object, ...], named: dict[str, torch.Tensor]) -> tuple[object, ...]:
    """Attention's results without values: an output, laid out as [batch, sequence, heads, width], and the rest."""
    batch, heads, count, _ = named["query"].shape
    output = named["query"].new_zeros(batch, count, heads, named["value"].shape[-1]).transpose(1, 2)
    rest = (output.new_zeros(1) if isinstance(value, Source) else value for value in results[1:])
    return output, *rest


def _twin(block: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """A copy on the CPU in float64, that shares no tensor with the block and has other values."""
    memo: dict[int, object] = {}
    for parameter in block.parameters():
        if not _tensor.is_plain(parameter):
            raise RefusedError("a parameter is of a tensor subclass")
        memo[id(parameter)] = torch.nn.Parameter(
            _disturbed(parameter.detach().cpu(), generator), requires_grad=parameter.requires_grad
        )
    for buffer in block.buffers():
        twin = buffer.detach().to("cpu", copy=True)
        memo[id(buffer)] = twin.double() if twin.is_floating_point() else twin
    return copy.deepcopy(block, memo)


def _disturbed(tensor: torch.Tensor, generator: torch.Generator, needs_grad: bool = False) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    values = tensor.double()
    scale = values.std(correction=0).item() or 1.0
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return (values + (0.1 * scale + 0.01) * noise).requires_grad_(needs_grad)


def _needs_grad(arguments: Arguments) -> list[bool]:
    return [tensor.requires_grad for tensor in arguments.tensors]


def _is_autocast(arguments: Arguments) -> bool:
    return torch.is_autocast_enabled(arguments.tensors[0].device.type)


def _autocast_key(arguments: Arguments) -> object:
    kind = arguments.tensors[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _no_autocast(arguments: Arguments) -> AbstractContextManager:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _wait(tensors: list[torch.Tensor]) -> None:
    if tensors[0].device.type == "cuda":
        torch.cuda.synchronize(tensors[0].device)
