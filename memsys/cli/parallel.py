"""The processes that train one model together: a lone one, or those that torchrun started.

Past one machine everything is torch.distributed's: DistributedDataParallel, or FSDP2's fully_shard. memsys acts inside
of each process, under budgets of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from memsys.errors import InputError

KINDS = ("ddp", "fsdp")
_LAUNCH = "torchrun --nproc-per-node 2 -m memsys.cli.main train"
_T = TypeVar("_T")


class LaunchError(InputError):
    """Started by torchrun and not told how to train together, or the other way round."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. `kind`: one of KINDS, or None for a process on its own."""

    kind: str | None = None
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is called in place of `model`: a wrapper of it under DDP, itself (with sharded weights) under FSDP2.

        Args:
            model: has its layers in `blocks`, each of which FSDP2 gathers on its own.
        """
        if self.kind == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        if self.kind == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(next(model.parameters()).device.type, (self.count,))
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return model

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, in the order of ranks."""
        if self.kind is None:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def mean(self, value: float) -> float:
        return sum(self.gather(value)) / self.count

    def by_first(self, make: Callable[[], _T]) -> _T:
        """What `make` returns in the first process, while the others wait."""
        return self.gather(make() if self.is_first else None)[0]

    def have_equal(self, model: nn.Module) -> bool:
        """Whether the model's parameters are the same bits in every process."""
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return len(set(self.gather(digest.hexdigest()))) == 1


@contextmanager
def open_ranks(kind: str | None, device: str) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, until the context ends.

    Args:
        kind: one of KINDS, or None to train alone. device: "auto", "cpu" or "cuda": gloo or nccl carries the rest.

    Raises:
        LaunchError: (a ValueError) `kind` and the way this process was started don't go together.
    """
    started = int(os.environ.get("WORLD_SIZE", "0"))
    if kind is None:
        if started > 1:
            raise LaunchError(f"torchrun started {started} processes, found no --parallel; add --parallel ddp or fsdp")
        yield Ranks()
        return
    if started == 0 or "RANK" not in os.environ:
        raise LaunchError(f"--parallel {kind}: wanted processes started by torchrun, found none; start it by "
                          f"`{_LAUNCH} --parallel {kind}`")  # fmt: skip
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(kind, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
