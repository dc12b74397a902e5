"""How a run of a block that memsys makes for itself ends before its time: refused, with the reason, or complete."""

from __future__ import annotations

from dataclasses import dataclass


class RefusedError(Exception):
    """The block can't be run again by rows; its text is the reason."""


class Enough(Exception):
    """Nobody wants what is left of the run."""


@dataclass(frozen=True)
class Declined:
    """The answer for a block whose saved tensors are moved whole, with the reason."""

    reason: str
