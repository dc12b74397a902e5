"""What does memory for the saved tensors of one step cost: from memsys's arena, from torch.empty, from malloc?

Each pool takes a copy of every tensor that a 12-layer GPT saves, holds them all, and frees them all. The copy is part
of it because fresh pages cost when they are first touched; the arena hands out pages touched in earlier rounds.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shown
import torch

from memsys import _C
from memsys.cli.gpt import GPT, VOCABULARY, GPTShape
from memsys.report import links

_LAYERS = 12
_SMOKE = {"width": 64, "seq": 64}
_SHAPE = {"width": 512, "seq": 2048}
_ROUNDS = 5
_MOST_WASTE = 0.05


def saved_sizes(width: int, seq: int) -> list[int]:
    """The bytes of each storage that one forward saves for its backward, parameters left out, in a shuffled order."""
    model = GPT(GPTShape(layers=_LAYERS, width=width, seq=seq))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(VOCABULARY, (1, seq))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(tokens, tokens)  # holds the graph, so that no address is used twice
    sizes = list(kept.values())
    del loss
    random.Random(0).shuffle(sizes)
    return sizes


class ArenaPool:
    """Blocks of the store's host memory."""

    def __init__(self, source: torch.Tensor, folder: Path) -> None:
        budgets = dict.fromkeys(("device_budget_bytes", "host_budget_bytes", "disk_budget_bytes"), -1)
        self.store = _C.TensorStore(runtime=_C.Runtime(_C.DeviceKind.host), spill_folder=str(folder), **budgets)
        self.source = source

    def take(self, sizes: list[int]) -> list[_C.SavedBlock]:
        address = self.source.data_ptr()
        blocks = [self.store.swap_out(address, size, 0, _C.Tier.pageable) for size in sizes]
        self.store.drain()
        return blocks

    def free(self, blocks: list[_C.SavedBlock]) -> None:
        blocks.clear()

    def reserved_bytes(self) -> int:
        return self.store.host_budget.used_bytes


class TorchPool:
    """Tensors of torch's CPU allocator."""

    def __init__(self, source: torch.Tensor, folder: Path) -> None:
        self.source = source

    def take(self, sizes: list[int]) -> list[torch.Tensor]:
        return [torch.empty(size, dtype=torch.uint8).copy_(self.source[:size]) for size in sizes]

    def free(self, blocks: list[torch.Tensor]) -> None:
        blocks.clear()


class MallocPool:
    """Blocks of the C library."""

    def __init__(self, source: torch.Tensor, folder: Path) -> None:
        self.source = source
        self.libc = ctypes.CDLL(None)
        self.libc.malloc.restype = ctypes.c_void_p
        self.libc.malloc.argtypes = [ctypes.c_size_t]
        self.libc.free.argtypes = [ctypes.c_void_p]

    def take(self, sizes: list[int]) -> list[int]:
        blocks = [self.libc.malloc(size) for size in sizes]
        if not all(blocks):
            raise MemoryError(f"malloc refused {sum(sizes)} bytes; free some memory")
        for block, size in zip(blocks, sizes, strict=True):
            ctypes.memmove(block, self.source.data_ptr(), size)
        return blocks

    def free(self, blocks: list[int]) -> None:
        for block in blocks:
            self.libc.free(block)
        blocks.clear()


@pytest.mark.parametrize("make_pool", [ArenaPool, TorchPool, MallocPool], ids=["arena", "torch", "malloc"])
def test_pool(benchmark, capsys, tmp_path: Path, make_pool: Callable) -> None:
    """One round: a step's tensors taken, held together, freed."""
    sizes = saved_sizes(**(_SHAPE if benchmark.enabled else _SMOKE))
    pool = make_pool(torch.ones(max(sizes), dtype=torch.uint8), tmp_path)
    rounds = _ROUNDS if benchmark.enabled else 1
    seconds: list[float] = []
    wasted: list[float] = []

    def one_round() -> None:
        started = time.perf_counter()
        blocks = pool.take(sizes)
        if isinstance(pool, ArenaPool):
            wasted.append(pool.reserved_bytes() / sum(sizes) - 1)
        pool.free(blocks)
        seconds.append(time.perf_counter() - started)

    benchmark.pedantic(one_round, rounds=rounds, iterations=1, warmup_rounds=1)
    line = shown.share_of_peak(make_pool.__name__, sum(sizes), seconds, links.measure_copy_rate(), "one-thread copy")
    line += f", {len(sizes) / min(seconds):.0f} blocks/s"
    if wasted:
        line += f", {max(wasted):.1%} of the memory wasted"
    benchmark.extra_info["line"] = line
    shown.show(capsys, line, *shown.caution(benchmark))
    if benchmark.enabled and wasted:
        assert max(wasted) < _MOST_WASTE
