"""What an offload session did, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from memsys.errors import InputError

if TYPE_CHECKING:
    from memsys.planning.swap_plan import Prediction
    from memsys.report.timeline import Timeline


@dataclass(frozen=True)
class PlanStats:
    """The plan that was followed last, beside what its steps measured.

    predicted: of one step (None for a plan made by hand); measured_step_us: the median of the last steps, from the
    first operation of forward to the end of backward (None before the first); declined: why nothing moves, or None;
    counts: spans by what becomes of them; plan_count: shapes of step with a plan.
    """

    predicted: Prediction | None
    measured_step_us: float | None
    declined: str | None
    solver: str
    counts: Mapping[str, int]
    plan_count: int


@dataclass
class OffloadStats:
    """Counts since offload() (bytes, microseconds).

    packed_count: saved tensors that were moved; passed_count: left alone (parameters, small, sparse, kept);
    out_bytes, in_bytes: moved away and back; aliased_bytes: not moved again, because another saved tensor shares the
    storage; peak_*_bytes: the most that was in use at once (device: kept + memsys's buffers + in flight);
    stall_us: time the training thread waited for a transfer; late_count: tensors not yet there when needed;
    remade_bytes: computed again instead of moved; undivided_count: tensors that ROWS was chosen for, but that moved
    whole because their block can't be run again by rows;
    fallback_count: tensors that stayed because no tier had room; kept_bytes: kept on the device just now;
    plan: the plan followed last, None without.
    """

    packed_count: int = 0
    passed_count: int = 0
    out_bytes: int = 0
    in_bytes: int = 0
    aliased_bytes: int = 0
    remade_bytes: int = 0
    undivided_count: int = 0
    peak_device_bytes: int = 0
    peak_host_bytes: int = 0
    peak_file_bytes: int = 0
    stall_us: int = 0
    late_count: int = 0
    fallback_count: int = 0
    kept_bytes: int = 0
    in_flight_bytes: int = 0
    spill_used_bytes: int = 0
    plan: PlanStats | None = None

    _timeline = None  # the last record; no field: it is not a count

    def timeline(self) -> Timeline:
        """What memsys.record_timeline recorded last. Raises InputError if nothing was recorded."""
        if self._timeline is None:
            raise InputError("timeline: nothing was recorded; run a step inside `with memsys.record_timeline(model):`")
        return self._timeline

    def as_dict(self) -> dict[str, int]:
        """The counts alone."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "plan"}
