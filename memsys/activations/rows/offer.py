"""What a policy is told of the block call in which a tensor is saved, and hands back in ROWS(alpha, segment)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowSegment:
    """It owns nothing.

    id: of the call, in the order of the forward's calls; row_count: positions of its sequence; row_bytes: what one of
    them takes of the tensor's bytes; remake_us: of a run of all rows, attention left out, where it was measured;
    is_proven: whether ROWS divides the tensor. Until it is, ROWS moves the tensor whole: once, to learn that rows are
    wanted (the block is tried at its next call), or for good, where `declined` says why.
    """

    id: int
    row_count: int = 0
    row_bytes: int = 0
    remake_us: float | None = None
    is_proven: bool = False
    declined: str | None = None


@dataclass
class CallFacts:
    """One call of a forward. inputs: indices of the spans that a run of its rows reads whole."""

    id: int
    block: str
    row_count: int
    remake_us: float | None
    declined: str | None
    inputs: list[int]
