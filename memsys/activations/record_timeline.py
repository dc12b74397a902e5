"""memsys.record_timeline: a context in which a session's transfers, levels and waits are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from memsys.errors import InputError

if TYPE_CHECKING:
    from memsys.activations.scope import offload_activations
    from memsys.activations.session import Session
    from memsys.report.timeline import Plan, Timeline


@contextmanager
def record_timeline(model: torch.nn.Module | offload_activations, planned: Plan | None = None) -> Iterator[Timeline]:
    """Records what memsys does inside the context; the timeline is filled when the context ends.

        with memsys.record_timeline(model) as timeline:
            model(x, target).backward()
        timeline.save("trace.json")  # for https://ui.perfetto.dev
        timeline.plot("trace.png")

    The end waits until no transfer is under way. `memsys.stats(model).timeline()` gives the last record again.
    Recording costs a lock and two readings of the clock a transfer, and up to 5 MiB.

    Args:
        model: offloaded, or a scope of memsys.offload_activations.
        planned: a schedule to be shown beside (see memsys.report.timeline.Plan); by default that of the plan which the
            model follows, if it follows one.

    Raises:
        InputError: (a ValueError) the model is not offloaded, or is being recorded already.
    """
    from memsys.activations.offload import session_of
    from memsys.activations.recording import Recording
    from memsys.activations.scope import offload_activations

    session: Session | None = None
    if isinstance(model, offload_activations):
        session = model.session
    elif isinstance(model, torch.nn.Module):
        session = session_of(model)
    if session is None:
        raise InputError("record_timeline: this model is not offloaded; call memsys.offload(model) first")
    recording = Recording(planned)
    session.start_recording(recording)
    try:
        yield recording.timeline
    finally:
        session.end_recording()
