"""One streamed model: which block's weights are in memory, for how long, and what the walk wants next.

Blocks are bound at their forward and unbound after it; backward asks for single weights. The core keeps the window,
reads ahead and counts; memory that a tensor still uses is never given to another block.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable

import torch

from memsys import _C, _tensor
from memsys.errors import BudgetError, InPlaceError, InputError, UnsupportedError
from memsys.weights.away import AwayParameter, Home
from memsys.weights.blocks import Block
from memsys.weights.claim import BoundStorages, StreamClaim
from memsys.weights.walk import Walk

logger = logging.getLogger("memsys")

# For another thread's visit to end, where the window holds no more blocks.
_PATIENCE_S, _PATIENCE_COUNT = 0.5, 20
Read = Callable[[str], torch.Tensor]


def stub_of(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One element that stands for a weight that is away: of its shape and type, and NaN."""
    value = float("nan") if dtype.is_floating_point or dtype.is_complex else 0
    whole = torch.full((1,), value, dtype=dtype, device="cpu")
    return whole.as_strided(parameter.shape, (0,) * parameter.dim())


class _Bound:
    """A block whose weights are in place, for how many visits at once, and the storages they are in."""

    __slots__ = ("count", "storages", "versions")

    def __init__(self, storages: list[torch.UntypedStorage], versions: list[int]) -> None:
        self.count = 1
        self.storages = storages
        self.versions = versions


class StreamSession:
    """The weights of a model's blocks behind a window; made by memsys.stream."""

    def __init__(
        self, store: object, blocks: list[Block], dtypes: list[list[torch.dtype]], walk: Walk, read: Read
    ) -> None:
        self._store = store
        self.blocks = blocks
        self.read = read
        self.bound = BoundStorages()
        self.claim = StreamClaim(self)
        self._dtypes = dtypes
        self._walk = walk
        self._stubs = [
            [stub_of(weight.parameter, dtype) for weight, dtype in zip(block.weights, types, strict=True)]
            for block, types in zip(blocks, dtypes, strict=True)
        ]
        self._lock = threading.RLock()
        self._left = threading.Condition(self._lock)  # a block left its place
        self._in_place: dict[int, _Bound] = {}
        self._own = threading.local()  # `held`: the block that stays for this thread's backward; `visits`: how many
        self._is_cast_told = False
        self._pid = os.getpid()
        for index in range(len(blocks)):
            self._put_stubs(index)

    def enter(self, index: int) -> None:
        """Puts a block's weights in place, for one visit more."""
        self._check_process()
        if not _tensor.in_backward():
            self._own.is_queued = False  # a backward that raised has not called us
        if self._held() not in (None, index):
            self.let_go()
        if not self._join(index):
            self._check_frozen(index)
            # Not under the lock: it may wait for the file.
            lease = self._acquire(index, self._walk.visit(index))
            with self._lock:
                if not self._join(index):
                    self._place(index, lease)
        self._own.visits = getattr(self._own, "visits", 0) + 1

    def leave(self, index: int) -> None:
        """Ends one visit. Raises InPlaceError if a weight was written to meanwhile."""
        self._own.visits -= 1
        with self._lock:
            found = self._in_place.get(index)
            if found is None:
                return  # restored meanwhile
            found.count -= 1
            if found.count > 0:
                return
            del self._in_place[index]
            written = self._written(index, found)
            for storage in found.storages:
                self.bound.remove(storage)
            self._put_stubs(index)
            self._left.notify_all()
        if written is not None:
            del storage, found
            self._store.drop(index)
            raise InPlaceError(f"{written}: a streamed weight was written to during its block's forward; it is frozen "
                               "and lies in a file: train an adapter, or call memsys.restore(model) first")  # fmt: skip

    def hold(self, index: int) -> None:
        """Keeps a block in place while this thread's backward is about it: a checkpoint may compute it again without
        calling it."""
        if self._held() == index:
            return
        self.enter(index)
        self._own.visits -= 1
        if self._held() is None and not getattr(self._own, "is_queued", False):
            self._own.is_queued = True
            _tensor.at_end_of_backward(self._end_backward)
        self._own.held = index

    def let_go(self) -> None:
        """Ends this thread's hold on a block, if it has one."""
        held, self._own.held = self._held(), None
        if held is not None:
            self._own.visits = getattr(self._own, "visits", 0) + 1
            self.leave(held)

    def storage_for_backward(self, index: int, part: int) -> torch.UntypedStorage:
        """The bytes of one weight, for as long as the storage lives."""
        if self._held() not in (None, index):
            self.let_go()
        self._walk.note_backward(index)
        with _tensor.under_autograd():
            return _tensor.storage_over(self._acquire(index, _C.Visit.backward).part(part))

    def close(self) -> None:
        """For good: nothing is put in place any more, graphs made before still find their weights.

        Raises UnsupportedError while a block's forward runs.
        """
        self.let_go()
        with self._lock:
            if self._in_place:
                name = self.blocks[next(iter(self._in_place))].name
                raise UnsupportedError(f"restore: the forward of {name} is running; call memsys.restore after it")

    def counts(self) -> dict[str, int]:
        return self._store.stats()

    def _held(self) -> int | None:
        return getattr(self._own, "held", None)

    def _end_backward(self) -> None:
        self._own.is_queued = False
        self.let_go()

    def _join(self, index: int) -> bool:
        with self._lock:
            found = self._in_place.get(index)
            if found is not None:
                found.count += 1
            return found is not None

    def _check_frozen(self, index: int) -> None:
        for weight, stub in zip(self.blocks[index].weights, self._stubs[index], strict=True):
            parameter = weight.parameter
            if parameter.requires_grad:
                raise InputError(f"{weight.name}: a streamed weight is frozen, found requires_grad=True; leave it "
                                 "frozen and train an adapter, or stream other blocks (blocks=)")  # fmt: skip
            if _tensor.storage_of(parameter) is not _tensor.storage_of(stub):
                raise InPlaceError(f"{weight.name}: a streamed weight was given other numbers; it is frozen and lies "
                                   "in a file: train an adapter, or call memsys.restore(model) first")  # fmt: skip

    def _place(self, index: int, lease: object) -> None:
        storages, versions = [], []
        weights, dtypes = self.blocks[index].weights, self._dtypes[index]
        try:
            with _tensor.under_autograd():
                for part, (weight, dtype) in enumerate(zip(weights, dtypes, strict=True)):
                    tensor = _tensor.tensor_over(lease.part(part), dtype, tuple(weight.parameter.shape))
                    storages.append(_tensor.storage_of(tensor))
                    self.bound.add(storages[-1], index, part)
                    weight.parameter.__class__ = torch.nn.Parameter
                    weight.parameter.data = tensor
                    versions.append(_tensor.version_of(weight.parameter))
        except BaseException:
            self._put_stubs(index)
            raise
        self._in_place[index] = _Bound(storages, versions)
        self._tell_of_casts(dtypes[0])

    def _written(self, index: int, found: _Bound) -> str | None:
        for weight, version in zip(self.blocks[index].weights, found.versions, strict=True):
            if _tensor.version_of(weight.parameter) != version:
                return weight.name
        return None

    def _put_stubs(self, index: int) -> None:
        with _tensor.under_autograd():
            for weight, stub in zip(self.blocks[index].weights, self._stubs[index], strict=True):
                weight.parameter.__class__ = torch.nn.Parameter
                weight.parameter.data = stub
                weight.parameter.memsys_home = Home(self, index, weight)
                weight.parameter.__class__ = AwayParameter

    def _acquire(self, index: int, visit: object) -> object:
        for _ in range(_PATIENCE_COUNT):
            try:
                return self._store.acquire(index, visit)
            except BudgetError:
                gc.collect()  # tensors in a cycle of references hold their block
                with self._lock:
                    others = sum(found.count for found in self._in_place.values()) > getattr(self._own, "visits", 0)
                    if not others or not self._left.wait(_PATIENCE_S):
                        break
        return self._store.acquire(index, visit)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UnsupportedError("this process was forked from the one that called memsys.stream; call memsys.stream "
                                   "in the child, or start it by spawn")  # fmt: skip

    def _tell_of_casts(self, dtype: torch.dtype) -> None:
        if self._is_cast_told or not torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return
        cast = torch.get_autocast_dtype("cpu")
        if cast != dtype:
            self._is_cast_told = True
            logger.warning("autocast makes a copy in %s of each streamed weight, and autograd holds it until backward: "
                           "pack the model in %s to have them streamed", cast, cast)  # fmt: skip
