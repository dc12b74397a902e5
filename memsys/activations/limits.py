"""The budgets and the spill folder of a session: what the user wrote, turned into bytes and a folder that works."""

from __future__ import annotations

import os
import warnings

import torch

from memsys import _C, budget
from memsys.errors import SpillError

# Of what is free at the time: enough is left for the rest of the machine.
_DEFAULT_SHARE = "80%"


def parse_limits(
    device_budget: int | str | None, host_budget: int | str | None, disk_budget: int | str | None, spill_dir: str
) -> dict[str, int]:
    """The store's limits in bytes (-1: none). What is free of a machine's memory and disk is shared evenly by the
    processes that torchrun started on it.

    Raises:
        BudgetFormatError: (a ValueError) for a budget that is no byte count.
    """
    device = budget.parse_budget(device_budget, free_device_bytes)
    host = budget.parse_budget(_DEFAULT_SHARE if host_budget is None else host_budget, _own_host_bytes)
    disk = budget.parse_budget(
        _DEFAULT_SHARE if disk_budget is None else disk_budget,
        lambda: budget.available_disk_bytes(spill_dir) // _process_count(),
    )
    return {
        "device_budget_bytes": -1 if device is None else device,
        "host_budget_bytes": host,
        "disk_budget_bytes": disk,
    }


def usable_spill_folder(spill_dir: str | os.PathLike | None) -> str:
    """The folder for the spill file; warns if it is memory itself.

    Raises:
        SpillError: (an OSError) if it is missing, a symbolic link, or can't be written to.
    """
    folder = os.fspath(spill_dir) if spill_dir is not None else str(budget.default_spill_dir())
    report = _C.inspect_spill_folder(folder)
    if not report["exists"] or report["is_symlink"] or not report["writable"]:
        raise SpillError(f"spill_dir: {report['message']}")
    if report["is_tmpfs"]:
        warnings.warn(
            f"spill_dir {folder!r} is on {report['filesystem']}, which is memory itself: moving tensors there saves "
            "nothing; choose a folder on a disk",
            stacklevel=5,
        )
    return folder


def _own_host_bytes() -> int:
    return budget.available_host_bytes() // _process_count()


def _process_count() -> int:
    """How many processes torchrun started on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def free_device_bytes() -> int:
    """What a percentage of device_budget refers to: free device memory, which on a CPU is RAM."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else _own_host_bytes()
