"""What may be done with a saved tensor, and what a policy is told of it.

A policy is a callable SavedTensor -> Decision. The five outcomes are those of MEMO (SIGMOD'25), made general.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch


class Place(Enum):
    """Where a decision puts the bytes."""

    KEEP = "keep"
    HOST = "host"
    FILE = "file"
    RECOMPUTE = "recompute"
    ROWS = "rows"


@dataclass(frozen=True)
class Decision:
    """One outcome; `segment` belongs to ROWS and RECOMPUTE; to ROWS also `alpha`, the share of the rows that moves, and
    `away`, where it goes (None: where other tensors go)."""

    place: Place
    segment: object = None
    alpha: float = 1.0
    away: Place | None = None


KEEP = Decision(Place.KEEP)
HOST = Decision(Place.HOST)
FILE = Decision(Place.FILE)


def RECOMPUTE(segment: object) -> Decision:
    """Drop the tensor and run `segment` again just before backward needs it."""
    return Decision(Place.RECOMPUTE, segment)


def ROWS(alpha: float, segment: object, away: Place | None = None) -> Decision:
    """Swap the first `alpha` (0 to 1) of the rows and recompute the others by `segment`."""
    return Decision(Place.ROWS, segment, alpha, away)


@dataclass(frozen=True)
class SavedTensor:
    """What a policy sees: no tensor, only its description.

    index: position among the distinct spans saved in this forward; bytes: of the span that would move;
    producer: name of the autograd node that made it ("" for leaves and detached tensors);
    segment: for RECOMPUTE(segment), where one cheap operation (an activation, a product, a LayerNorm) gives the tensor
    again from other saved tensors; else None. The first time the tensor is moved all the same, to be compared.
    row_segment: for ROWS(alpha, row_segment), where the tensor is saved in a call of a layer, or of a module that was
    declared by memsys.token_local, and may be divided by the positions of its sequence (a RowSegment); else None.
    """

    index: int
    bytes: int
    dtype: torch.dtype
    shape: torch.Size
    producer: str
    is_layer_input: bool
    is_attention_output: bool
    segment: object = None
    row_segment: object = None
