"""torch on the CPU as if it ran on the simulated accelerator: every operation's operands are told to the simulation,
and every tensor lives in its pool, ordered on the stream that made it.

So a block's address is reused as soon as it is free, a read without an edge is an error, and memsys's real hooks, run
inside, see streams as they do on a GPU. The simulation's executor runs a few tasks now and then between two operations,
as the seed says, and sources whose bytes have left are dropped there, as the thread that does it outside may at any
time.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memsys import _C, _tensor

# Operations that make or change a tensor without reading or writing any byte.
_BYTELESS = ("aten::empty", "aten::set_", "aten::detach", "aten::resize_", "aten::new_empty", "aten::lift_fresh")


class PoolBackend(_tensor.SimulatedBackend):
    """The simulation's backend, where operations are told one by one, and the pool sees what is freed."""

    def __init__(self, runtime: Any) -> None:
        super().__init__(runtime, (_C.Use.read, _C.Use.write))

    def note_use(self, address: int, bytes_: int, write: bool) -> None:
        if not write:  # who wrote has said so
            super().note_use(address, bytes_, False)

    def note_free(self, address: int, bytes_: int) -> None: ...


class SimulatedTorch(TorchDispatchMode):
    """A context in which torch's operations run on the simulated accelerator's current stream."""

    def __init__(self, seed: int, breath: int = 8) -> None:
        """breath: between two operations, once in so many, some tasks run; 0: never."""
        super().__init__()
        self.runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
        self.backend = PoolBackend(self.runtime)
        self.chance = random.Random(seed)
        self.breath = breath
        self.at_breath: Callable[[], object] = lambda: None
        self.operation_count = 0

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        """Operations inside run on `stream`."""
        before, self.backend.stream = self.backend.stream, stream
        try:
            yield
        finally:
            self.backend.stream = before

    def use_here(self, tensor: torch.Tensor) -> None:
        """What a program says of a tensor that it uses on another stream than its own."""
        self.runtime.note_user(_tensor.address_of(_tensor.storage_of(tensor)), self.backend.stream)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view or function._schema.name.startswith(_BYTELESS):
            return result
        self.operation_count += 1
        return self._note(function, args, kwargs, result)

    def _note(self, function: Any, args: tuple, kwargs: dict, result: Any) -> Any:
        schema = function._schema.arguments
        operands = [*zip(schema, args, strict=False), *((a, kwargs[a.name]) for a in schema if a.name in kwargs)]
        known, written = set(), []
        for argument, value in operands:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, torch.Tensor):
                    known.add(_tensor.storage_key(_tensor.storage_of(tensor)))
                    written.append(tensor) if is_written else self._tell(tensor, _C.Use.read)
        self._breathe()
        for tensor in written:
            self._tell(tensor, _C.Use.write)
        if isinstance(result, torch.Tensor):
            return self._housed(result, known)
        if isinstance(result, (tuple, list)):
            return type(result)(self._housed(one, known) if isinstance(one, torch.Tensor) else one for one in result)
        return result

    def _tell(self, tensor: torch.Tensor, use: Any) -> None:
        if tensor.numel() == 0:
            return
        begin, end = _tensor.span_of(tensor)
        address = _tensor.address_of(_tensor.storage_of(tensor)) + begin
        self.runtime.note_use(address, end - begin, self.backend.stream, use)

    def _housed(self, tensor: torch.Tensor, known: set[int]) -> torch.Tensor:
        """The operation's fresh result, in a block of the pool."""
        storage = _tensor.storage_of(tensor)
        if storage.nbytes() == 0 or _tensor.storage_key(storage) in known or tensor.requires_grad:
            return tensor
        house = self.backend.empty(storage.nbytes())
        ctypes.memmove(_tensor.address_of(house), _tensor.address_of(storage), storage.nbytes())
        self.runtime.note_use(_tensor.address_of(house), storage.nbytes(), self.backend.stream, _C.Use.write)
        known.add(_tensor.storage_key(house))
        return _tensor.restore(house, _tensor.layout_of(tensor, 0))

    def _breathe(self) -> None:
        if self.breath and self.chance.randrange(self.breath) == 0:
            self.runtime.step(self.chance.randrange(1, 6))
            self.at_breath()
