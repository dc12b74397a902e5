"""What an offload session did, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from memsys.errors import InputError

if TYPE_CHECKING:
    from memsys.report.timeline import Timeline


@dataclass
class OffloadStats:
    """Counts since offload() (bytes, microseconds).

    packed_count: saved tensors that were moved; passed_count: left alone (parameters, small, sparse, kept);
    out_bytes, in_bytes: moved away and back; aliased_bytes: not moved again, because another saved tensor shares the
    storage; peak_*_bytes: the most that was in use at once (device: kept + memsys's buffers + in flight);
    stall_us: time the training thread waited for a transfer; late_count: tensors not yet there when needed;
    remade_bytes: computed again instead of moved;
    fallback_count: tensors that stayed because no tier had room; kept_bytes: kept on the device just now.
    """

    packed_count: int = 0
    passed_count: int = 0
    out_bytes: int = 0
    in_bytes: int = 0
    aliased_bytes: int = 0
    remade_bytes: int = 0
    peak_device_bytes: int = 0
    peak_host_bytes: int = 0
    peak_file_bytes: int = 0
    stall_us: int = 0
    late_count: int = 0
    fallback_count: int = 0
    kept_bytes: int = 0
    in_flight_bytes: int = 0
    spill_used_bytes: int = 0

    _timeline = None  # the last record; no field: it is not a count

    def timeline(self) -> Timeline:
        """What memsys.record_timeline recorded last. Raises InputError if nothing was recorded."""
        if self._timeline is None:
            raise InputError("timeline: nothing was recorded; run a step inside `with memsys.record_timeline(model):`")
        return self._timeline

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
