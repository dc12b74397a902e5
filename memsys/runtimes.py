"""One core runtime (executor, device, io engine) a device and process, made at the first use and never in a fork."""

from __future__ import annotations

import os

import torch

from memsys import _C, _tensor
from memsys.errors import UnsupportedError

_runtimes: dict[str, object] = {}
_override: tuple[object, _tensor.Backend] | None = None


def runtime_for(device: torch.device) -> tuple[object, _tensor.Backend]:
    """The runtime and backend that serve tensors of `device`."""
    if _override is not None:
        return _override
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"memsys serves tensors on cpu and cuda, found {device}; move the model there")
    key = str(device)
    if key not in _runtimes:
        kind = _C.DeviceKind.cuda if device.type == "cuda" else _C.DeviceKind.host
        _runtimes[key] = _C.Runtime(kind, device.index or 0)
    return _runtimes[key], _tensor.backend_for(device)


def override_runtime(runtime: object | None, backend: _tensor.Backend | None = None) -> None:
    """For tests: serves every device by this runtime (a simulation, or one with faults); None ends it."""
    global _override
    _override = None if runtime is None else (runtime, backend or _tensor.CpuBackend())


def _forget_in_child() -> None:
    # A child has none of the parent's threads: it makes runtimes of its own.
    _runtimes.clear()


os.register_at_fork(after_in_child=_forget_in_child)
