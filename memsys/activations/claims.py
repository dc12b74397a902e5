"""The two claimants that offload brings: parameters stay where they are; activations go where the policy says."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from memsys import _C, _tensor
from memsys.activations.decision import Decision, Place, SavedTensor
from memsys.activations.layers import LayerMarks
from memsys.activations.mover import Mover
from memsys.activations.order import ForwardRecord
from memsys.activations.parameters import ParameterFilter
from memsys.activations.policy import Policy, checked, make_policy
from memsys.activations.recipes import Recipe, RecipeBook
from memsys.activations.span import MovedHandle, PassedHandle, SavedSpan, WrapperHandle
from memsys.activations.stats import OffloadStats

if TYPE_CHECKING:
    from memsys.activations.rows.book import RowBook
    from memsys.activations.rows.call import RowCall
    from memsys.activations.rows.prefix import RowPrefix

_CHAINS = {
    Place.HOST: (_C.Tier.pageable, _C.Tier.file),
    Place.FILE: (_C.Tier.file,),
}


class ParameterClaim:
    """Passes parameters, buffers and autocast's cached copies of parameters."""

    stage = 1
    in_backward = False

    def __init__(self, parameters: ParameterFilter, stats: OffloadStats, min_bytes: int) -> None:
        self._parameters = parameters
        self._stats = stats
        self._min_bytes = min_bytes

    def claim(self, tensor: torch.Tensor) -> PassedHandle | None:
        if _tensor.is_small(tensor, self._min_bytes):
            return None  # stays whatever it is
        if tensor.layout is not torch.strided or _tensor.is_wrapper(tensor):
            return None
        if not self._is_parameter(tensor):
            return None
        self._stats.passed_count += 1
        return PassedHandle(tensor)

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        if type(tensor) is not torch.Tensor and isinstance(tensor, torch.nn.Parameter):
            return True
        storage = _tensor.storage_of(tensor)
        if self._parameters.contains(storage):
            return True
        leaf = _tensor.leaf_behind(tensor)
        if leaf is not None and not _tensor.is_wrapper(leaf) and _tensor.storage_of(leaf) is storage:
            return True  # a leaf belongs to the user, who keeps it
        return _tensor.cast_parameter(tensor) is not None


class AliasTable:
    """The spans that are alive, by storage, version and range. Weak: the graph owns the spans."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int, int, int], tuple[weakref.ref, weakref.ref]] = {}
        self._lock = threading.Lock()

    def find(self, storage: torch.UntypedStorage, key: tuple[int, int, int]) -> SavedSpan | None:
        found = self._spans.get((_tensor.storage_key(storage), *key))
        # The number alone may belong to a dead storage; the weak reference tells.
        return found[1]() if found is not None and found[0]() is storage else None

    def add(self, storage: torch.UntypedStorage, key: tuple[int, int, int], span: SavedSpan) -> None:
        whole = (_tensor.storage_key(storage), *key)
        entry = (weakref.ref(storage), weakref.ref(span, lambda _: self._drop(whole, entry)))
        with self._lock:
            self._spans[whole] = entry

    def _drop(self, whole: tuple[int, int, int, int], entry: object) -> None:
        # Dictionary operations on int tuples are atomic under the GIL; a lock here could meet itself in a collection.
        if self._spans.get(whole) is entry:
            self._spans.pop(whole, None)


class _Placing(NamedTuple):
    """A span on its way to where the policy says; the recipe or the row segment's call, where it has one."""

    tensor: torch.Tensor
    span: SavedSpan
    saved: SavedTensor
    recipe: Recipe | None
    call: RowCall | None


class ActivationClaim:
    """Applies the policy to one forward's saved tensors."""

    stage = 3
    in_backward = False

    def __init__(self, *, mover: Mover, policy: Policy, device: torch.device, min_bytes: int, marks: LayerMarks,
                 aliases: AliasTable, recipes: RecipeBook | None, stats: OffloadStats, record: ForwardRecord,
                 is_excluded: Callable[[], bool], rows: RowBook | None = None) -> None:  # fmt: skip
        self._mover = mover
        self._policy = policy
        self._away = make_policy("all", device.type)
        self._device = device
        self._min_bytes = min_bytes
        self._marks = marks
        self._aliases = aliases
        self._recipes = recipes
        self._stats = stats
        self.record = record
        self._is_excluded = is_excluded
        self.rows = rows

    def claim(self, tensor: torch.Tensor) -> object:
        call = None if self.rows is None else self.rows.current()
        if call is None:
            return self._claim_any(tensor)
        handle = self._claim_any(tensor)
        call.note(tensor, handle)
        return handle

    def _claim_any(self, tensor: torch.Tensor) -> object:
        if _tensor.is_small(tensor, self._min_bytes):  # most tensors: decided before anything else is looked up
            self._stats.passed_count += 1
            return PassedHandle(tensor)
        return self._claim(tensor, self._policy)

    def put_away(self, tensor: torch.Tensor) -> object:
        """Moves the tensor whatever the policy says, because somebody asked for just that."""
        return self._claim(tensor, self._away)

    def _claim(self, tensor: torch.Tensor, policy: Policy) -> object:
        if _tensor.is_wrapper(tensor) and not self._is_excluded():
            return self._claim_wrapper(tensor, policy)
        if not self._is_movable(tensor):
            self._stats.passed_count += 1
            return PassedHandle(tensor)
        storage = _tensor.storage_of(tensor)
        begin, end = _tensor.span_of(tensor)
        whole_bytes = storage.nbytes()
        # Views of one storage (q, k, v of a fused projection) share one transfer if each covers much of it.
        if (end - begin) * 2 >= whole_bytes:
            begin, end = 0, whole_bytes
        key = (_tensor.version_of(tensor), begin, end)
        span = self._aliases.find(storage, key)
        if span is not None and span.rows is not None and not self._is_covered(tensor, span):
            span = None  # bytes that nobody makes again: they move by themselves
        if span is None:
            span = SavedSpan(self._mover, storage, begin, end - begin)
            self.record.add(span)
            self._place(tensor, span, policy)
            self._aliases.add(storage, key, span)
        else:
            self._stats.aliased_bytes += end - begin
        return MovedHandle(tensor, span)

    def _is_movable(self, tensor: torch.Tensor) -> bool:
        if not _tensor.is_plain(tensor) or tensor.device != self._device or self._is_excluded():
            return False
        bytes_ = tensor.numel() * tensor.element_size()
        if bytes_ < self._min_bytes or bytes_ == 0:
            return False
        begin, end = _tensor.span_of(tensor)
        # An expanded tensor is larger than its span; a resized storage may be smaller than the tensor says.
        return end - begin >= self._min_bytes and end <= _tensor.storage_of(tensor).nbytes()

    def _place(self, tensor: torch.Tensor, span: SavedSpan, policy: Policy) -> None:
        node = tensor.grad_fn
        call = self.rows.current() if self.rows is not None and policy is self._policy else None
        recipe = self._recipe_for(tensor, span) if policy is self._policy else None
        saved = SavedTensor(
            index=span.index,
            bytes=span.bytes,
            dtype=tensor.dtype,
            shape=tensor.shape,
            producer="" if node is None else node.name(),
            is_layer_input=self._marks.is_layer_input(span.source),
            is_attention_output=self._marks.is_attention_output(node),
            segment=None if recipe is None else recipe.segment,
            row_segment=None if call is None else call.offer(tensor, span),
        )
        placing = _Placing(tensor, span, saved, recipe, call)
        recorder = self.record.recorder
        if recorder is None:
            self._carry_out(checked(policy(saved), saved), placing)
            return
        recorder.note_saved(saved, recipe)
        try:
            self._carry_out(checked(policy(saved), saved), placing)
        finally:
            recorder.resume()

    def _carry_out(self, decision: Decision, placing: _Placing) -> None:
        tensor, span, saved, recipe, call = placing
        place = decision.place
        if place is Place.KEEP:
            if self._mover.keep(span):
                self._stats.passed_count += 1
                return
            place = Place.FILE  # the budget does not hold it
        if place is Place.RECOMPUTE:
            if recipe.segment.is_proven:
                self.record.note_remade(span)
                self._mover.drop(span, recipe)
                return
            span.recipe = recipe
            place = self._away(saved).place
        if place is Place.ROWS:
            place = decision.away or self._away(saved).place
            span.rows = self._divided(call, tensor, span, decision.alpha)
        self._stats.packed_count += 1
        if span.rows is not None:
            self._stats.out_bytes += span.rows.send(self._mover, span, _CHAINS[place])
            return
        self._mover.send(span, _CHAINS[place])
        self._stats.out_bytes += span.bytes

    def _divided(self, call: RowCall, tensor: torch.Tensor, span: SavedSpan, alpha: float) -> RowPrefix | None:
        self.rows.want()
        if call.facts.declined is not None:
            self._stats.undivided_count += 1
        return call.divide(tensor, span, alpha)

    def _is_covered(self, tensor: torch.Tensor, span: SavedSpan) -> bool:
        call = None if self.rows is None else self.rows.current()
        return call is not None and call.covers(tensor, span)

    def _recipe_for(self, tensor: torch.Tensor, span: SavedSpan) -> Recipe | None:
        is_whole = span.begin_bytes == 0 and span.bytes == span.source.nbytes()
        return self._recipes.find(tensor, span.index) if is_whole and self._recipes is not None else None

    def _claim_wrapper(self, tensor: torch.Tensor, policy: Policy) -> WrapperHandle:
        names, context = tensor.__tensor_flatten__()
        parts = {}
        for name in names:
            inner = getattr(tensor, name)
            parts[name] = self._claim(inner, policy)
        return WrapperHandle(tensor, parts, context)
