"""Cheap operations whose result need not move: it is made again from what the same operation saved for itself.

A norm, an activation or a product reads what is saved anyway, and takes a fraction of the time that moving its result
would (after MEMO, SIGMOD'25, which recomputes token-wise what its link can't carry). Nothing is trusted: a result is
dropped only where it was, in an earlier step, made again beside the bytes that had moved and equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from memsys import _tensor
from memsys.activations.clock import Clock, clock_for
from memsys.activations.span import MovedHandle, PassedHandle
from memsys.errors import CorruptionError

_SAMPLE_COUNT = 64
_DEPTH_LIMIT = 4  # of recipes that read what other recipes give: all of it is in memory at once
_aten = torch.ops.aten


class _Operation(NamedTuple):
    """What autograd's node saved as `inputs`, its other arguments, and the operation on both, into `out`."""

    inputs: tuple[str, ...]
    run: Callable[..., object]
    arguments: Callable[[object], tuple[object, ...]] = lambda node: ()


def _gelu(x: torch.Tensor, approximate: str, *, out: torch.Tensor) -> None:
    _aten.gelu.out(x, approximate=approximate, out=out)


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, ...],
                epsilon: float, *, out: torch.Tensor) -> None:  # fmt: skip
    out.copy_(_aten.native_layer_norm.default(x, shape, weight, bias, epsilon)[0])


_OPERATIONS = {
    "GeluBackward0": _Operation(("self",), _gelu, lambda node: (node._saved_approximate,)),
    "SiluBackward0": _Operation(("self",), _aten.silu.out),
    "MishBackward0": _Operation(("self",), _aten.mish.out),
    "HardswishBackward0": _Operation(("self",), _aten.hardswish.out),
    "LeakyReluBackward0": _Operation(("self",), _aten.leaky_relu.out, lambda node: (node._saved_negative_slope,)),
    "MulBackward0": _Operation(("self", "other"), _aten.mul.out),
}
_NORM = "NativeLayerNormBackward0"


class _Step(NamedTuple):
    """One operation found in the graph: the handles on what it read, and how to run it again."""

    handles: tuple[MovedHandle | PassedHandle | None, ...]
    run: Callable[..., object]
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class CheapSegment:
    """What a policy sees of a recipe; it owns nothing.

    operation: the name of autograd's node; needed_bytes: of the tensor and of all that it is made from; is_proven:
    whether RECOMPUTE drops the tensor, or moves it once more, to be compared.
    """

    operation: str
    needed_bytes: int
    is_proven: bool


class Recipe:
    """How to make one saved tensor again. It owns readers of its inputs, which therefore live as long."""

    __slots__ = (
        *("_arguments", "_book", "_call", "_layout", "_readers", "_sample", "_shapes", "_thread_count"),
        *("depth", "key", "segment"),
    )

    def __init__(self, book: RecipeBook, key: tuple[object, ...], result: torch.Tensor, step: _Step) -> None:
        self._book = book
        self.key = key
        self._call, self._arguments = step.run, step.arguments
        self._readers = tuple(handle if handle is None else handle.reader() for handle in step.handles)
        self._layout = _tensor.layout_of(result, 0)
        self._shapes = tuple(_passed_shape(handle) for handle in step.handles)
        self._thread_count = torch.get_num_threads() if result.device.type == "cpu" else None
        spans = [reader.span for reader in self._readers if isinstance(reader, MovedHandle)]
        recipes = [span.recipe for span in spans]  # read once: another thread may be proving one
        self.depth = 1 + max((recipe.depth for recipe in recipes if recipe is not None), default=0)
        inputs_bytes = sum(
            span.bytes if recipe is None else recipe.segment.needed_bytes
            for span, recipe in zip(spans, recipes, strict=True)
        )
        self.segment = CheapSegment(key[1], result.nbytes + inputs_bytes, book.is_proven(key))
        # A change that autograd does not count (through .data, say) shows here. On a GPU, looking would mean waiting.
        is_sampled = self.segment.is_proven and result.device.type == "cpu"
        self._sample = _sample(result.detach()) if is_sampled else None

    def input_indices(self) -> tuple[int, ...]:
        """The spans that it reads, by their index in the forward."""
        return tuple(reader.span.index for reader in self._readers if isinstance(reader, MovedHandle))

    def prove(self, moved: torch.UntypedStorage, scratch: torch.UntypedStorage) -> None:
        """Makes the tensor beside its bytes that moved, and notes in the book whether they are equal."""
        clock = clock_for(scratch.device)
        is_made = self._run(scratch, clock) is not None
        is_equal = is_made and torch.equal(_tensor.bytes_over(scratch), _tensor.bytes_over(moved))
        self._book.note_trial(self.key, is_equal)

    def let_go(self) -> None:
        """After a trial: what it brought back ahead of its time may leave again, where room is scarce."""
        for reader in self._readers:
            if isinstance(reader, MovedHandle) and reader.span.block is not None:
                reader.span.loaded = None

    def refuse(self) -> None:
        """Notes that the tensor can't be made again."""
        self._book.note_trial(self.key, False)

    def make(self, target: torch.UntypedStorage) -> None:
        """Writes the tensor's bytes into `target`. Raises CorruptionError where they are known to differ."""
        result = self._run(target)
        if result is None:
            raise CorruptionError("a saved tensor can't be computed again: a parameter that its operation read has "
                                  "been emptied since (by sharding?); use policy='all'")  # fmt: skip
        if self._sample is not None and not _same_bits(_sample(result), self._sample):
            raise CorruptionError(
                f"a saved tensor of shape {list(self._layout.size)} differs from what its operation gives now: it was "
                "changed in a way that autograd does not count (.data, a numpy view); clone it first, or use "
                "policy='all'"
            )

    def _run(self, target: torch.UntypedStorage, clock: Clock | None = None) -> torch.Tensor | None:
        if tuple(_passed_shape(reader) for reader in self._readers) != self._shapes:
            return None
        tensors = [reader if reader is None else reader.peek() for reader in self._readers]
        if not all(tensor is None or _tensor.is_backed(tensor) for tensor in tensors):
            return None
        out = _tensor.restore(target, self._layout)
        # What the operation read had been cast by autocast before it was saved (on CUDA it would cast what a norm
        # reads once more); and where threads divide the work, the last bits of some operations depend on it.
        with torch.no_grad(), torch.autocast(out.device.type, enabled=False), _threads(self._thread_count):
            begin = None if clock is None else clock.stamp()
            self._call(*tensors, *self._arguments, out=out)
        if clock is not None:
            self._book.note_time(self.key, clock, begin, clock.stamp())
        return out


class RecipeBook:
    """Finds recipes, and remembers which were proven; with `is_strict` none counts as proven, so that each result is
    moved and compared every time."""

    def __init__(self, is_strict: bool = False) -> None:
        self._is_strict = is_strict
        self._trials: dict[tuple[object, ...], bool] = {}
        self._times: dict[tuple[object, ...], tuple[Clock, object, object]] = {}
        self._norms: dict[int, tuple[float, bool] | None] = {}  # by the weight's address: epsilon, has a bias

    def refresh(self, model: torch.nn.Module) -> None:
        """Reads the model anew, before each forward: autograd does not say a norm's epsilon."""
        norms: dict[int, tuple[float, bool] | None] = {}
        for module in model.modules():
            if not isinstance(module, torch.nn.LayerNorm):
                continue
            weight = module._parameters.get("weight")  # a parametrised one would be computed, with side effects
            if weight is not None and _tensor.is_plain(weight):
                known = (module.eps, module._parameters.get("bias") is not None)
                address = _address(weight)
                norms[address] = known if norms.get(address, known) == known else None
        self._norms = norms

    def find(self, tensor: torch.Tensor, index: int) -> Recipe | None:
        """The recipe of a tensor about to be saved as span `index` of a forward; None if it is not, or is a view of
        nothing but, the whole result of one known operation on tensors that memsys has a handle on."""
        name = _tensor.maker_of(tensor)
        if name != _NORM and name not in _OPERATIONS:
            return None
        result = _tensor.whole_result(tensor)
        if result is None or _tensor.storage_of(result) is not _tensor.storage_of(tensor):
            return None
        step = self._norm_step(result.grad_fn) if name == _NORM else _step(result.grad_fn, _OPERATIONS[name])
        if step is None or not all(_will_last(handle, result.device.type) for handle in step.handles):
            return None
        # Not the shape: a sequence of another length is the same operation.
        key = (index, name, *step.arguments, result.dtype)
        if self._trials.get(key) is False:
            return None
        recipe = Recipe(self, key, result, step)
        return recipe if recipe.depth <= _DEPTH_LIMIT else None

    def is_proven(self, key: tuple[object, ...]) -> bool:
        """Whether a trial was equal, and none was not."""
        return self._trials.get(key, False) and not self._is_strict

    def note_trial(self, key: tuple[object, ...], is_equal: bool) -> None:
        """Once unequal, never again."""
        self._trials[key] = is_equal and self._trials.get(key, True)

    def note_time(self, key: tuple[object, ...], clock: Clock, begin: object, end: object) -> None:
        self._times[key] = (clock, begin, end)

    def remake_us(self, key: tuple[object, ...]) -> float | None:
        """How long the operation took in its trial; None where it is not proven. To be asked after the step."""
        if not self.is_proven(key) or key not in self._times:
            return None
        clock, begin, end = self._times[key]
        return clock.between_us(begin, end)

    def _norm_step(self, node: object) -> _Step | None:
        x, weight, bias = handles = tuple(_handle(node, name) for name in ("input", "weight", "bias"))
        known = self._norms.get(_address(weight.tensor)) if isinstance(weight, PassedHandle) else None
        if x is None or known is None or known[1] is not (bias is not None):
            return None
        return _Step(handles, _layer_norm, (tuple(node._saved_normalized_shape), known[0]))


def _step(node: object, operation: _Operation) -> _Step | None:
    handles = tuple(_handle(node, name) for name in operation.inputs)
    if any(handle is None for handle in handles):
        return None
    return _Step(handles, operation.run, operation.arguments(node))


def _handle(node: object, name: str) -> MovedHandle | PassedHandle | None:
    """memsys's handle on what the node saved under `name`, if it is one."""
    found = _tensor.packed_by(node, name)
    return found if isinstance(found, (MovedHandle, PassedHandle)) else None


def _will_last(handle: MovedHandle | PassedHandle | None, device_type: str) -> bool:
    """Whether the tensor behind a handle can be read whenever the result is wanted, on whatever stream that is.

    memsys brings back what it moved for the stream that asks. Of what was passed: FSDP and ZeRO empty parameters
    between their uses; and on an accelerator anything but a leaf goes back to the allocator of its own stream.
    """
    if not isinstance(handle, PassedHandle):
        return True
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    return device_type == "cpu" or handle.tensor.requires_grad


def _address(parameter: torch.Tensor) -> int:
    return _tensor.address_of(_tensor.storage_of(parameter))


def _passed_shape(handle: object) -> torch.Size | None:
    return handle.tensor.shape if isinstance(handle, PassedHandle) else None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """The operation on as many threads as when it ran first; None where threads of the CPU don't matter."""
    found = torch.get_num_threads()
    if count is None or found == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(found)


def _sample(result: torch.Tensor) -> torch.Tensor:
    """A copy of elements spread evenly over the bytes of a dense tensor."""
    count = min(_SAMPLE_COUNT, result.numel())
    return result.as_strided((count,), (result.numel() // count,)).clone()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
