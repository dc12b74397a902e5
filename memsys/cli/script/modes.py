"""What a run of a script does with memsys: nothing ("plain"), offload every model that is trained ("moved"), or what
the script itself asks for ("own")."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import memsys
from memsys.activations import default
from memsys.activations.session import Session
from memsys.activations.trial import TrialStep


class Uses:
    """Counts what memsys did in this process: forwards asked for, tensors and bytes moved, models streamed."""

    def __init__(self) -> None:
        self.asked_count = 0
        self.streamed_count = 0
        self._counts: dict[int, Any] = {}

    def watch(self) -> None:
        make_record = Session.new_record

        def new_record(session: Session, device: torch.device) -> Any:
            self._counts[id(session._counts)] = session._counts  # kept, so that no other gets its id
            return make_record(session, device)

        Session.new_record = new_record
        stream = memsys.stream

        def streamed(*args: Any, **kwargs: Any) -> torch.nn.Module:
            self.streamed_count += 1
            return stream(*args, **kwargs)

        memsys.stream = streamed

    def facts(self) -> dict[str, int]:
        return {
            "asked_count": self.asked_count + self.streamed_count,
            "streamed_count": self.streamed_count,
            "packed_count": sum(counts.packed_count for counts in self._counts.values()),
            "out_bytes": sum(counts.out_bytes for counts in self._counts.values()),
            "remade_bytes": sum(counts.remade_bytes for counts in self._counts.values()),
        }


def switch_off(uses: Uses) -> None:
    """Has every use of memsys in this process leave tensors where they are, and counts the uses. The script's calls go
    on working: its models have sessions, whose counts stay 0. memsys.plan and memsys.verify are as ever."""
    in_trial = threading.local()
    forward, run_trial = Session.forward, TrialStep.run

    def run(trial: TrialStep) -> Any:
        in_trial.is_open = True
        try:
            return run_trial(trial)
        finally:
            in_trial.is_open = False

    def passing(session: Session, model: torch.nn.Module | None) -> AbstractContextManager:
        if getattr(in_trial, "is_open", False):
            return forward(session, model)
        uses.asked_count += 1
        return nullcontext()

    def nobody(device: torch.device) -> tuple:
        uses.asked_count += 1
        return ()

    TrialStep.run, Session.forward, default.claimants_for = run, passing, nobody
    _read_streamed_models()


def _read_streamed_models() -> None:
    """A streamed model is read into memory whole: the plain run of a script that streams is that of its weights."""
    stream, stream_stats = memsys.stream, memsys.stream_stats
    key = "memsys_streamed_before"

    def resident(model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        stream(model, *args, **kwargs)
        model.__dict__[key] = stream_stats(model)
        return memsys.restore(model)

    memsys.stream = resident
    memsys.stream_stats = lambda model: model.__dict__.get(key) or stream_stats(model)


def offload_each(options: dict[str, Any]) -> Callable[[torch.nn.Module], None]:
    """What to do with a model before its first call, so that it is offloaded."""
    return lambda model: memsys.offload(model, **options) and None
