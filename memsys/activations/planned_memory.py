"""memsys.install_allocator: torch's CUDA memory from a planned slab (MEMO's runtime, SIGMOD'25, and STAlloc's idea of a
pluggable allocator, arXiv 2507.16274).

Torch asks through its CUDAPluggableAllocator, for which the compiled core exports plain C functions. A MemPool would
not do: torch asks it for whole segments and splits them itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from memsys import _C, _tensor
from memsys.errors import InputError, UnsupportedError
from memsys.runtimes import runtime_for

if TYPE_CHECKING:
    from memsys.planning.addresses import AddressPlan

# What torch calls its callbacks, and what of ours it gets. It has no setter of one kind before some version, and then
# the feature behind it stays refused by torch itself.
_CALLBACKS = {
    "set_record_stream_fn": "memsys_record_stream",
    "set_reset_fn": "memsys_reset",
    "set_base_alloc_fn": "memsys_base_allocation",
    "set_memory_fraction_fn": "memsys_refuse_fraction",
    "set_begin_allocate_to_pool": "memsys_refuse_pool",
}
_NEEDED = ("set_record_stream_fn", "set_begin_allocate_to_pool")  # without these results could be wrong in silence


class PlannedMemory:
    """The allocator that `install_allocator` installed; it stays until the process ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what was recorded, once for each training step: its first request is the plan's first.

        What is asked for outside of it (parameters, data, the optimizer's state) is served without a plan.
        """
        _C.begin_allocator_step(self.device.index, _tensor.backend_for(self.device).current_stream())
        try:
            yield
        finally:
            _C.end_allocator_step(self.device.index)


def install_allocator(plan: AddressPlan, device: torch.device | str | int | None = None) -> PlannedMemory:
    """Makes torch's CUDA memory come from one slab, at planned addresses.

        with record_allocations(model) as record: ...              # in one run, on the GPU
        plan_addresses(record.requests).save("step.json")
        memory = memsys.install_allocator(AddressPlan.load("step.json"))   # in the next, before anything is on the GPU
        for batch in batches:
            with memory.step():
                loss = model(batch).sum(); loss.backward()

    Requests of the compute stream are matched by position in the step and bytes; the first that differs sends the rest
    of its step to an unplanned pool, and the next step begins anew. `allocator_stats()` counts both.

    Args:
        plan: of one step's requests as recorded on the GPU, in units of 512 bytes.
        device: whose memory is planned, by default the first; memory of other GPUs is served without a plan.

    What torch can't do with such an allocator, on which see docs/addresses.md: memory statistics, snapshots and
    history (they raise), CUDA graphs and MemPools (refused), sharing CUDA tensors between processes (raises), and
    torch.OutOfMemoryError (arrives as RuntimeError).

    Raises:
        UnsupportedError: without CUDA, or in a process that has used the GPU or installed an allocator already.
        InputError: for what is no plan, or one of another alignment; BudgetError if the GPU has no room for the slab.
    """
    from memsys.planning.addresses import AddressPlan
    from memsys.planning.slab_replay import slab_arguments

    if not isinstance(plan, AddressPlan):
        raise InputError(f"install_allocator: wanted a plan that plan_addresses made, found {type(plan).__name__}")
    if plan.alignment % 512:
        raise InputError(f"install_allocator: the plan is aligned to {plan.alignment} bytes; plan with alignment=512")
    if not torch.cuda.is_available():
        raise UnsupportedError("install_allocator: torch sees no CUDA device here; a CPU's memory is not torch's to "
                               "plan. To look at a plan without a GPU, replay it by replay_on_slab")  # fmt: skip
    if torch.cuda.is_initialized() or _C.is_allocator_installed():
        raise UnsupportedError("install_allocator: this process has used the GPU, or has an allocator of its own, "
                               "already; call it first of all, before anything is moved to CUDA")  # fmt: skip
    index = _index_of(device)
    swapped = torch.cuda.memory.CUDAPluggableAllocator(_C.__file__, "memsys_allocate", "memsys_free")
    _set_callbacks(swapped.allocator())
    _C.install_allocator(runtime_for(torch.device("cuda", index))[0], index, *slab_arguments(plan))
    torch.cuda.memory.change_current_allocator(swapped)
    return PlannedMemory(torch.device("cuda", index))


def allocator_stats() -> dict[int, dict[str, int]]:
    """What the planned allocator did so far, by the index of the GPU; empty if none is installed.

    hit_count: requests served at planned addresses; miss_count: in a step, and not (conflict_count of them because the
    planned place was still in use); online_count: outside of steps, or on other streams; wait_count: a stream was made
    to wait for another's use of a place; upstream_count: pieces of memory taken from the driver; live_bytes,
    reserved_bytes and their peaks.
    """
    return _C.allocator_stats()


def _index_of(device: torch.device | str | int | None) -> int:
    if device is None:
        return 0
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type != "cuda":
        raise InputError(f"install_allocator: wanted a CUDA device, found {found}")
    return found.index or 0


def _set_callbacks(allocator: object) -> None:
    library = ctypes.CDLL(_C.__file__)
    for setter, function in _CALLBACKS.items():
        if hasattr(allocator, setter):
            getattr(allocator, setter)(ctypes.cast(getattr(library, function), ctypes.c_void_p).value)
        elif setter in _NEEDED:
            raise UnsupportedError(f"install_allocator: torch {torch.__version__} has no {setter}, without which "
                                   "memory in use could be handed out again; run without it")  # fmt: skip
