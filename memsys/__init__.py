"""memsys trains models that do not fit in memory: one hierarchy, one engine, results equal to the last bit."""

from memsys.activations.checkpoint import checkpoint
from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE, ROWS, Decision, SavedTensor
from memsys.activations.offload import offload, stats
from memsys.activations.plan import plan
from memsys.activations.planned_memory import allocator_stats, install_allocator
from memsys.activations.record_timeline import record_timeline
from memsys.activations.rows.mark import token_local
from memsys.activations.scope import offload_activations
from memsys.activations.selective import checkpoint_contexts
from memsys.activations.stats import OffloadStats
from memsys.activations.verify import VerifyReport, verify
from memsys.errors import (
    BudgetError,
    CorruptionError,
    DeviceError,
    DtypeError,
    InPlaceError,
    InputError,
    MemsysError,
    OrderError,
    RangeError,
    SpillError,
    UnsupportedError,
)
from memsys.features.gradient import gather
from memsys.features.optimizers import RowAdagrad, RowAdam, RowSGD
from memsys.features.table import HostTable
from memsys.features.work import GatherWork, prefetch
from memsys.planning.simulate import simulate
from memsys.undo import restore
from memsys.weights.coverage import CoverageReport, coverage
from memsys.weights.ffn import WindowedFFN
from memsys.weights.ffn_model import ffn_stats, windowed_ffn
from memsys.weights.masked import FrozenFfn, masked_ffn
from memsys.weights.pack import pack_weights
from memsys.weights.stats import StreamStats
from memsys.weights.stream import stream, stream_stats
from memsys.weights.unpack import unpack_weights

__all__ = [
    "FILE",
    "HOST",
    "KEEP",
    "RECOMPUTE",
    "ROWS",
    "BudgetError",
    "CorruptionError",
    "CoverageReport",
    "Decision",
    "DeviceError",
    "DtypeError",
    "FrozenFfn",
    "GatherWork",
    "HostTable",
    "InPlaceError",
    "InputError",
    "MemsysError",
    "OffloadStats",
    "OrderError",
    "RangeError",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "SavedTensor",
    "SpillError",
    "StreamStats",
    "UnsupportedError",
    "VerifyReport",
    "WindowedFFN",
    "allocator_stats",
    "checkpoint",
    "checkpoint_contexts",
    "coverage",
    "ffn_stats",
    "gather",
    "install_allocator",
    "masked_ffn",
    "offload",
    "offload_activations",
    "pack_weights",
    "plan",
    "prefetch",
    "record_timeline",
    "restore",
    "simulate",
    "stats",
    "stream",
    "stream_stats",
    "token_local",
    "unpack_weights",
    "verify",
    "windowed_ffn",
]
