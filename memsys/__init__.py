"""memsys trains models that do not fit in memory: one hierarchy, one engine, results equal to the last bit."""

from memsys.activations.checkpoint import checkpoint
from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE, ROWS, Decision, SavedTensor
from memsys.activations.offload import offload, restore, stats
from memsys.activations.scope import offload_activations
from memsys.activations.selective import checkpoint_contexts
from memsys.activations.stats import OffloadStats
from memsys.activations.verify import VerifyReport, verify
from memsys.errors import (
    BudgetError,
    CorruptionError,
    DeviceError,
    InPlaceError,
    InputError,
    MemsysError,
    OrderError,
    SpillError,
    UnsupportedError,
)

__all__ = [
    "FILE",
    "HOST",
    "KEEP",
    "RECOMPUTE",
    "ROWS",
    "BudgetError",
    "CorruptionError",
    "Decision",
    "DeviceError",
    "InPlaceError",
    "InputError",
    "MemsysError",
    "OffloadStats",
    "OrderError",
    "SavedTensor",
    "SpillError",
    "UnsupportedError",
    "VerifyReport",
    "checkpoint",
    "checkpoint_contexts",
    "offload",
    "offload_activations",
    "restore",
    "stats",
    "verify",
]
