"""What streaming did so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class StreamStats:
    """Counts of one streamed model since memsys.stream.

    load_count: blocks read from the file. hit_count: visits that found their block there. read_bytes: from the file,
    whole pages. resident_bytes, peak_resident_bytes: streamed weights in memory, those in flight included; never more
    than the budget. kept_bytes: the file's other weights (embeddings, norms), which stay. stall_us: time that visits
    waited. window_layers: blocks that memory holds at once. block_count: of the model. budget_bytes: -1 without one.
    written_bytes: to the file; frozen weights are never written.
    """

    load_count: int
    hit_count: int
    read_bytes: int
    resident_bytes: int
    peak_resident_bytes: int
    kept_bytes: int
    stall_us: int
    window_layers: int
    block_count: int
    budget_bytes: int
    written_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
