"""Records which memory one training step asks for, in forward and backward: the stream of requests that addresses are
planned for, and that models of allocators replay.

On the CPU a dispatch mode sees each operation's results: memory that an operation takes and gives back inside itself
(a matrix product's workspace) is not seen. Autograd runs a CPU backward in the caller's thread, where the mode is
active; its threads for other devices don't know of modes, so on CUDA the allocator's own history is read instead,
which sees everything.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from memsys import _cuda_memory, _tensor
from memsys.activations.layers import repeated_layers
from memsys.errors import UnsupportedError
from memsys.planning.trace import Request


class _Mark(NamedTuple):
    """Where the step is: which layer it runs, and whether in its backward."""

    layer: int = -1
    phase: str = "forward"


class AllocationRecord:
    """What `record_allocations` found; complete when its context has ended.

    requests: every allocation, in order of `begin`. Each allocation and each release is one event, counted from 0;
    what was alive when the recording ended (gradients) ends at `event_count`.
    """

    def __init__(self) -> None:
        self.event_count = 0
        self._rows: list[list] = []  # bytes, begin, end, stream, mark at the beginning, mark at the end

    def allocate(self, bytes_: int, mark: _Mark, stream: int = 0) -> list:
        """Adds a request that begins now; what it returns is given to `release`."""
        row = [bytes_, self.event_count, -1, stream, mark, mark]
        self._rows.append(row)
        self.event_count += 1
        return row

    def release(self, row: list, mark: _Mark) -> None:
        row[2], row[5] = self.event_count, mark
        self.event_count += 1

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(self._request(row) for row in self._rows)

    @property
    def transients(self) -> tuple[Request, ...]:
        """The requests that ended in the phase in which they began: neither saved for backward nor left behind."""
        return tuple(self._request(row) for row in self._rows if row[2] >= 0 and row[4].phase == row[5].phase)

    @property
    def peak_bytes(self) -> int:
        """The most that all requests had alive at once."""
        return live_peak(self.requests)

    def _request(self, row: list) -> Request:
        bytes_, begin, end, stream, mark, _ = row
        return Request(bytes_, begin, end if end >= 0 else self.event_count, stream, mark.layer, mark.phase)


def live_peak(requests: Iterable[Request]) -> int:
    """The most bytes that `requests` have alive at once: no placement of them needs less."""
    changes = []
    for request in requests:
        changes.append((request.begin, request.bytes))
        changes.append((request.end, -request.bytes))
    alive = peak = 0
    for _, change in sorted(changes):  # at one position releases come first: ranges are half-open
        alive += change
        peak = max(peak, alive)
    return peak


@contextmanager
def record_allocations(
    model: torch.nn.Module | None = None, device: torch.device | str | None = None
) -> Iterator[AllocationRecord]:
    """Records the allocations of the forward and backward passes run inside it.

        with record_allocations(model) as record:
            loss = model(x).sum()
            loss.backward()
        record.requests, record.peak_bytes

    Args:
        model: its repeated layers give the requests their layer; without it all are -1.
        device: whose memory; by default that of the model's first parameter, else the CPU.

    Results do not change by it. A CPU step takes some 10 us an operation longer; a CUDA step's history takes host
    memory, and a history that the caller records at the same time is ended by it. On CUDA a request's layer and phase
    are those that the host was at when it asked. Raises UnsupportedError for other devices.
    """
    device = torch.device(device) if device is not None else _device_of(model)
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"record_allocations: can't see allocations on {device}; run the step on cpu or cuda")
    record, where = AllocationRecord(), _Whereabouts(model)
    try:
        if device.type == "cuda":
            _cuda_memory.begin_history()
            try:
                yield record
            finally:
                _read_history(record, where, _cuda_memory.end_history(device))
        else:
            with _Watch(record, where) as watch:
                yield record
            watch.close()
    finally:
        where.release()


def _device_of(model: torch.nn.Module | None) -> torch.device:
    parameter = next(model.parameters(), None) if model is not None else None
    return parameter.device if parameter is not None else torch.device("cpu")


class _Watch(_tensor.DispatchMode):
    """Sees the results of operations, and follows each new storage to its end."""

    def __init__(self, record: AllocationRecord, where: _Whereabouts) -> None:
        super().__init__()
        self._record, self._where = record, where
        self._alive: dict[int, weakref.ref] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # asked again for each operation on the tensors inside of it
        known = {_tensor.storage_key(storage) for storage in _storages((args, kwargs))}
        results = func(*args, **kwargs)
        for storage in _storages(results):
            key = _tensor.storage_key(storage)
            if key not in known and storage.nbytes() > 0 and storage.device.type == "cpu":
                known.add(key)
                self._follow(key, storage)
        return results

    def _follow(self, key: int, storage: torch.UntypedStorage) -> None:
        found = self._alive.get(key)
        if found is not None and found() is storage:
            return
        row = self._record.allocate(storage.nbytes(), self._where.now())

        def end(reference: weakref.ref) -> None:
            if self._alive.get(key) is reference:
                del self._alive[key]
                self._record.release(row, self._where.now())

        self._alive[key] = weakref.ref(storage, end)

    def close(self) -> None:
        """What dies from now on is not recorded."""
        self._alive.clear()


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    for value in _tensor.leaves_of(values):
        if isinstance(value, torch.Tensor):
            if _tensor.is_plain(value):
                yield _tensor.storage_of(value)
        elif isinstance(value, torch.UntypedStorage):
            yield value


class _Whereabouts:
    """Knows which layer runs just now. In backward a layer begins when the gradient of its output is there, and ends
    when that of its input is: hooks on these tensors, because hooks on a module's backward would change its graph."""

    def __init__(self, model: torch.nn.Module | None) -> None:
        self._outer: list[int] = []  # layers that are entered and not left
        self._layer = -1
        self._outputs: dict[int, weakref.ref] = {}
        self.history: list[tuple[float, _Mark]] = []  # by time in us
        self._hooks = []
        for index, layer in enumerate(repeated_layers(model) if model is not None else ()):
            self._hooks.append(layer.register_forward_pre_hook(self._entering(index), with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._leaving(index), always_call=True))

    def now(self) -> _Mark:
        return _Mark(self._layer, "backward" if _tensor.in_backward() else "forward")

    def _set(self, layer: int) -> None:
        self._layer = layer
        self.history.append((time.time() * 1e6, self.now()))

    def _entering(self, index: int):
        def enter(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            for tensor in _differentiable((args, kwargs)):
                storage = _tensor.storage_of(tensor)
                found = self._outputs.get(_tensor.storage_key(storage))
                if found is None or found() is not storage:  # of no layer: when its gradient is there, none runs
                    self._hook(tensor, -1)
            self._outer.append(self._layer)
            self._set(index)

        return enter

    def _leaving(self, index: int):
        def leave(_: torch.nn.Module, args: tuple, output: object) -> None:
            for tensor in _differentiable(output):
                storage = _tensor.storage_of(tensor)
                self._outputs[_tensor.storage_key(storage)] = weakref.ref(storage)
                self._hook(tensor, index)
            self._set(self._outer.pop() if self._outer else -1)

        return leave

    def _hook(self, tensor: torch.Tensor, layer: int) -> None:
        self._hooks.append(tensor.register_hook(lambda _: self._set(layer)))

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._outputs.clear()


def _differentiable(values: object) -> Iterator[torch.Tensor]:
    for value in _tensor.leaves_of(values):
        if isinstance(value, torch.Tensor) and _tensor.is_plain(value) and value.requires_grad:
            yield value


def _read_history(record: AllocationRecord, where: _Whereabouts, events: list[_cuda_memory.HistoryEvent]) -> None:
    """Turns what CUDA's allocator did into requests."""
    times = [at_us for at_us, _ in where.history]
    alive: dict[int, list] = {}
    for event in events:
        place = bisect_right(times, event.at_us)
        mark = where.history[place - 1][1] if place else _Mark()
        if event.is_allocation:
            alive[event.address] = record.allocate(event.bytes, mark, event.stream)
        elif event.address in alive:
            record.release(alive.pop(event.address), mark)
