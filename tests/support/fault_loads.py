"""What the faults strike: whole uses of memsys from their making to their end, each with the result it must have.

A load makes its subject, uses it as often as it is asked, says whether anything is left of a use, and ends it.
"""

from __future__ import annotations

import errno
import gc
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradients import assert_idle, bits_equal, gradients, offloaded, small_input, small_model, step
from streamed import inputs, plain_file, stack
from streamed import step as streamed_step
from weight_files import relu_model

import memsys
from memsys import _tensor
from memsys.activations.decision import FILE, HOST
from memsys.activations.offload import session_of
from memsys.features import work
from memsys.runtimes import runtime_for
from memsys.weights.checked import open_weights
from memsys.weights.journal import JOURNAL_SUFFIX
from memsys.weights.output import PARTIAL_SUFFIX, Output

Results = list[torch.Tensor | None]
SETTLE_S = 5.0


def agree(found: Results, wanted: Results) -> bool:
    """To the last bit."""
    return len(found) == len(wanted) and all(
        (one is None) == (other is None) and (one is None or bits_equal(one.detach(), other.detach()))
        for one, other in zip(found, wanted, strict=True)
    )


def until(what: str, is_so: Any) -> None:
    """Waits for what the core gives back a moment after the last use has ended."""
    end = time.monotonic() + SETTLE_S
    while not is_so():
        assert time.monotonic() < end, f"left behind: {what}"
        time.sleep(0.002)
        gc.collect()


class Training:
    """A training step of three layers whose saved tensors all leave."""

    def __init__(self, folder: Path, place: str) -> None:
        self._folder, self._place = folder, place
        self.wanted = step(small_model(), small_input())

    def make(self) -> torch.nn.Module:
        options = {"verify": self._place == "host", "disk_budget": "16MiB"}
        if self._place == "host":
            options["host_budget"] = "128KiB"  # then to the file
        return offloaded(small_model(), self._folder, lambda _: HOST if self._place == "host" else FILE, **options)

    def use(self, model: torch.nn.Module) -> Results:
        if not runtime_for(torch.device("cpu"))[0].is_seeded:
            return step(model, small_input())
        model.zero_grad()
        loss = model(small_input()).float().square().mean()
        session_of(model).drain()  # so that all is away when backward comes
        loss.backward()
        return [loss.detach(), *gradients(model)]

    def settle(self, model: torch.nn.Module) -> None:
        assert _tensor.top_hooks() is None, "hooks are left behind"
        session = session_of(model)
        if runtime_for(torch.device("cpu"))[0].is_seeded:
            session.drain()  # nothing runs there by itself
        assert_idle(model)
        store = session._store
        if store is not None:
            until("device budget", lambda: store.trim() >= 0 and store.device_budget.used_bytes == 0)
            until("host budget", lambda: store.trim() >= 0 and store.host_budget.used_bytes == 0)
            store.check_invariants()

    def end(self, model: torch.nn.Module) -> None:
        memsys.restore(model)


class Gathering:
    """An epoch over a table that was read from a file: every way to gather, and the sparse gradient."""

    UNSEEN = (("read", "corrupt"),)  # a .npy file has no checksums: nobody can tell that its bytes have changed
    ROWS, COLUMNS = 40_000, 112  # 17 MiB: three reads

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "table.npy")
        generator = torch.Generator().manual_seed(3)
        self._rows = torch.randn(self.ROWS, self.COLUMNS, generator=generator)
        np.save(self._path, self._rows.numpy())
        self._batches = [torch.randint(0, self.ROWS, (2000,), generator=generator) for _ in range(4)]
        self.wanted = self._plain()

    def _plain(self) -> Results:
        rows = [self._rows[batch] for batch in self._batches]
        index = self._batches[0]
        dense = torch.zeros_like(self._rows).index_add_(0, index, (2 * self._rows[index]))
        where = torch.unique(index)
        return [rows[0], rows[1], rows[1], *rows, where, dense[where]]

    def make(self) -> memsys.HostTable:
        return memsys.HostTable(self._path, helper_count=2)

    def use(self, table: memsys.HostTable) -> Results:
        table.zero_grad()
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(3)  # so that helpers help
        try:
            first, second = self._batches[:2]
            out = torch.empty(len(second), self.COLUMNS)
            found = [table.gather(first), table.gather_async(second).wait(), table.gather_async(second, out).wait()]
            found += list(memsys.prefetch(table, self._batches))
            memsys.gather(table, first).square().sum().backward()
            return [*found, *table.grad_rows()]
        finally:
            torch.set_num_threads(torch_threads)

    def settle(self, table: memsys.HostTable) -> None:
        until("pooled rows", lambda: table.trim() >= 0 and table._core.pool_bytes == 0)

    def end(self, table: memsys.HostTable) -> None:
        _end_gather_thread()


def _end_gather_thread() -> None:
    """So that the next gather beside the caller starts a thread."""
    pool, work._executor = work._executor, None
    if isinstance(pool, Executor):
        pool.shutdown()


class Streaming:
    """Forward and backward of a model whose blocks come from a packed file, a window of two at a time; each read is
    compared with its checksum (the default, "first", trusts a disk that has told the truth once)."""

    BLOCKS = 3

    def __init__(self, folder: Path) -> None:
        plain = plain_file(stack(self.BLOCKS), folder)
        self._path = str(folder / "packed.safetensors")
        memsys.pack_weights(plain, self._path)
        self.wanted = self._flat(streamed_step(stack(self.BLOCKS), inputs()[0]))

    def _flat(self, found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> Results:
        return [found[0], *(found[1][name] for name in sorted(found[1]))]

    def make(self) -> torch.nn.Module:
        return memsys.stream(stack(self.BLOCKS), self._path, window=2, verify="always")

    def use(self, model: torch.nn.Module) -> Results:
        model.zero_grad()
        return self._flat(streamed_step(model, inputs()[0]))

    def settle(self, model: torch.nn.Module) -> None:
        assert _tensor.top_hooks() is None, "hooks are left behind"
        session = memsys.weights.stream.session_of(model).session
        until("loads", lambda: session.counts()["in_flight_count"] == 0)
        assert not session._in_place, "blocks are left in place"
        assert session.counts()["peak_resident_bytes"] <= 2 * session._store.slot_bytes

    def end(self, model: torch.nn.Module) -> None:
        memsys.restore(model)
        kept = dict(stack(self.BLOCKS).state_dict())
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items()), "restored wrongly"


class Packing:
    """A packing that was interrupted goes on, from a file with checksums into a new one, which is then read back."""

    def __init__(self, folder: Path) -> None:
        self._source = str(folder / "source.safetensors")
        self._path = folder / "packed" / "model.safetensors"
        self._path.parent.mkdir()
        state = relu_model().state_dict()
        memsys.pack_weights(state, self._source, bundle_ffn=False)
        self._names = sorted(state)
        self.wanted = [state[name] for name in self._names]
        self._interrupted = self._half_done()

    def _half_done(self) -> dict[str, bytes]:
        """The files that a packing leaves, by suffix, with half of its journal."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Output, "finish", _refuse)
            with pytest.raises(memsys.SpillError):
                memsys.pack_weights(self._source, self._path)
        found = {PARTIAL_SUFFIX: b"", JOURNAL_SUFFIX: b""}
        for suffix in found:
            found[suffix] = self._path.with_name(self._path.name + suffix).read_bytes()
        lines = found[JOURNAL_SUFFIX].splitlines(keepends=True)
        found[JOURNAL_SUFFIX] = b"".join(lines[: len(lines) // 2])
        return found

    def clear(self) -> Path:
        """From the beginning instead."""
        for one in self._path.parent.iterdir():
            one.unlink()
        return self._path

    def make(self) -> Path:
        self.clear()
        for suffix, data in self._interrupted.items():
            self._path.with_name(self._path.name + suffix).write_bytes(data)
        return self._path

    def use(self, path: Path) -> Results:
        memsys.pack_weights(self._source, path)
        weights = open_weights(path, "always")
        return [weights.read(name) for name in self._names]

    def settle(self, path: Path) -> None:
        left = {one.name for one in path.parent.iterdir()}
        assert left <= {path.name, f"{path.name}.partial", f"{path.name}.partial.journal"}, left

    def end(self, path: Path) -> None:
        assert [one.name for one in path.parent.iterdir()] == [path.name], "an end that left more than the file"


def _refuse(*_: object) -> None:
    raise memsys.SpillError(errno.EIO, "refused")


def load_named(name: str, folder: Path) -> Any:
    """One of LOADS, over files in `folder`."""
    if name.startswith("train"):
        return Training(folder, "host" if "host" in name else "file")
    return {"gather": Gathering, "stream": Streaming, "pack": Packing}[name](folder)


LOADS = ("train, file", "train, host then file", "gather", "stream", "pack")


def each_k(count: int, is_thinned: bool, turn: int) -> Iterator[int]:
    """Which of `count` operations to fail: all; or the first, the last, and one in between that changes by turns."""
    if not is_thinned:
        yield from range(max(count, 1))
        return
    yield from sorted({0, turn % max(count, 1), max(count - 1, 0)})
