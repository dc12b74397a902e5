"""Gathers under way beside the computation: one at a time, and a stream of batches a few ahead."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from memsys.errors import InputError, UnsupportedError
from memsys.features.index import Index, flat_index

if TYPE_CHECKING:
    from memsys.features.device_road import DeviceWork
    from memsys.features.table import HostTable

# One thread for all: the gathers it runs are wide enough to fill a link, and more would take cores from the training.
_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()


class GatherWork:
    """A gather under way. It holds index and output, so it may be dropped at any time."""

    def __init__(self, future: Future[torch.Tensor]) -> None:
        self._future = future
        self._owner_pid = os.getpid()

    def is_done(self) -> bool:
        """Whether wait() would return at once."""
        return self._future.done()

    def wait(self) -> torch.Tensor:
        """The rows; raises what gather raises."""
        if os.getpid() != self._owner_pid and not self._future.done():
            raise UnsupportedError(
                "a gather that the parent process began does not end in a forked child; begin it there"
            )
        return self._future.result()


def start(table: HostTable, index: Index, out: torch.Tensor | None = None) -> GatherWork:
    """table.gather(index, out) beside the caller, on one thread. Nobody changes index or out before wait()."""
    pool = _pool()
    return GatherWork(_done(table, index, out) if pool is None else pool.submit(table._gather_alone, index, out))


def _done(table: HostTable, index: Index, out: torch.Tensor | None) -> Future[torch.Tensor]:
    """The gather, done here and now: the system gives no thread."""
    future: Future[torch.Tensor] = Future()
    try:
        future.set_result(table._gather_alone(index, out))
    except Exception as error:
        future.set_exception(error)
    return future


def prefetch(table: HostTable, batches: Iterable[Index], depth: int = 2) -> Iterator[torch.Tensor]:
    """The rows of each batch of indices, in order, gathered up to `depth` batches ahead of the reader.

    Outputs come from the table's pool: a batch's memory is used again once its rows are dropped. May be left half-way.
    """
    if depth < 1:
        raise InputError(f"depth: wanted at least 1 batch ahead, found {depth!r}; try 2")
    return _prefetched(table, batches, depth)


def _prefetched(table: HostTable, batches: Iterable[Index], depth: int) -> Iterator[torch.Tensor]:
    under_way: deque[GatherWork | DeviceWork] = deque()
    failure = None
    indices = iter(batches)
    while failure is None:
        try:
            index = flat_index(next(indices))
            under_way.append(table.gather_async(index.clone()))  # samplers fill one buffer again and again
        except StopIteration:
            break
        except Exception as error:  # told once the batches before it have been read
            failure = error
        if len(under_way) > depth:
            yield under_way.popleft().wait()
    while under_way:
        yield under_way.popleft().wait()
    if failure is not None:
        raise failure


def _pool() -> ThreadPoolExecutor | None:
    """None where its thread can't start; the next call asks again."""
    global _executor
    with _lock:
        if _executor is None:
            pool = ThreadPoolExecutor(1, thread_name_prefix="memsys-gather")
            try:
                # Nothing that matters: a pool keeps what it could not start a thread for, and would do it later.
                pool.submit(int)
            except RuntimeError:
                return None
            _executor = pool
        return _executor


def _forget_in_child() -> None:
    global _executor, _lock
    _executor, _lock = None, threading.Lock()  # whose thread, or holder, stayed in the parent


os.register_at_fork(after_in_child=_forget_in_child)
