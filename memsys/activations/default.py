"""The sessions of tensors that no memsys.offload or scope answers for: one a device, made when first asked for.

Checkpointed segments come one by one, so a record here goes on over the segments of a step: backward then prefetches
one segment's inputs while it recomputes another.
"""

from __future__ import annotations

import os
import threading

import torch

from memsys.activations.claims import ActivationClaim, ParameterClaim
from memsys.activations.order import ForwardRecord
from memsys.activations.session import OffloadOptions, Session

_lock = threading.Lock()
_sessions: dict[torch.device, Session] = {}


class _ThreadRecords(threading.local):
    def __init__(self) -> None:
        self.records: dict[torch.device, ForwardRecord] = {}


_thread = _ThreadRecords()


def session_for(device: torch.device) -> Session:
    """The device's session without a model: everything of 256 KiB or more moves, to files from a CPU, to host memory
    from a GPU."""
    with _lock:
        if device not in _sessions:
            _sessions[device] = Session(OffloadOptions(policy="all"))
        return _sessions[device]


def claimants_for(device: torch.device) -> tuple[ParameterClaim, ActivationClaim]:
    """What answers for tensors of `device` in this thread's present step."""
    session = session_for(device)
    record = _thread.records.get(device)
    if record is None or record.is_over:
        if record is not None:
            record.end()
        record = _thread.records[device] = session.new_record(device)
    return session.claimants(record)


def _forget_in_child() -> None:
    # A child has none of the parent's threads, and its lock may be held by one of them.
    global _lock
    _lock = threading.Lock()
    _sessions.clear()
    _thread.records.clear()


os.register_at_fork(after_in_child=_forget_in_child)
