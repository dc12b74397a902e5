"""Why a block can't be run again by rows."""

from __future__ import annotations

from dataclasses import dataclass


class RefusedError(Exception):
    """Ends a trial run; its text is the reason."""


@dataclass(frozen=True)
class Declined:
    """The answer for a block whose saved tensors are moved whole, with the reason."""

    reason: str
