"""The policies that need no plan: all, inputs, auto, and the user's own.

A policy answers with a Decision for each span; ROWS and RECOMPUTE of anything but what it was offered are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from memsys.activations.decision import FILE, HOST, KEEP, RECOMPUTE, Decision, Place, SavedTensor
from memsys.errors import InputError, UnsupportedError

Policy = Callable[[SavedTensor], Decision]
NAMES = ("auto", "all", "inputs")
# Below this the calls that make a tensor again cost what moving it would: 1 ms, where moving costs 0.6 ms a MiB (CPU).
MIN_REMADE_BYTES = 4 << 20


class SwapAll:
    """Everything moves, to the first tier of the device's chain."""

    def __init__(self, away: Decision) -> None:
        self._away = away

    def __call__(self, saved: SavedTensor) -> Decision:
        return self._away


class Profile:
    """For a step that is recorded: everything moves, and what a cheap operation may give again is tried beside it,
    where half the budget has room for both and what it is made from."""

    def __init__(self, away: Decision, budget_bytes: int | None) -> None:
        self._away = away
        self._budget_bytes = budget_bytes

    def __call__(self, saved: SavedTensor) -> Decision:
        if saved.segment is None or saved.segment.is_proven:
            return self._away
        needed_bytes = saved.bytes + saved.segment.needed_bytes
        has_room = self._budget_bytes is None or needed_bytes <= self._budget_bytes // 2
        return RECOMPUTE(saved.segment) if has_room else self._away


class InputsOnly:
    """Layer inputs and attention outputs move: what MEMO always swaps. The rest stays."""

    def __init__(self, away: Decision) -> None:
        self._away = away

    def __call__(self, saved: SavedTensor) -> Decision:
        return self._away if saved.is_layer_input or saved.is_attention_output else KEEP


@dataclass(frozen=True)
class KeepLimit:
    """How much auto keeps: a budget, or where that is None a share of what a forward saves, less memsys's buffers.
    `now` is what is kept already, by several forwards perhaps."""

    budget_bytes: int | None = 0
    share: float = 0.0
    buffer_bytes: int = 0
    now: Callable[[], int] = lambda: 0

    def keep_bytes(self, saved_bytes: int) -> int:
        whole = int(self.share * saved_bytes) if self.budget_bytes is None else self.budget_bytes
        return max(0, whole - self.buffer_bytes)

    def can_remake(self, saved: SavedTensor, is_late: bool) -> bool:
        """Whether making the tensor again pays, and finds room: within a budget, when backward has freed what is kept,
        for the tensor and what it is made from."""
        if saved.segment is None or saved.bytes < MIN_REMADE_BYTES:
            return False
        return self.budget_bytes is None or (not is_late and saved.segment.needed_bytes <= self.budget_bytes // 4)


class Measured:
    """auto: the first forward moves everything; afterwards what a cheap operation makes again is dropped, and of the
    rest the spans that backward wants first stay, within the limit. They need no transfer at all, and backward frees
    them while it reads the rest."""

    def __init__(self, away: Decision, limit: KeepLimit) -> None:
        self._away = away
        self._limit = limit
        self._keep_bytes = 0
        self._keep_from: int | None = None

    def __call__(self, saved: SavedTensor) -> Decision:
        is_late = self._keep_from is not None and saved.index >= self._keep_from
        if self._limit.can_remake(saved, is_late):
            return RECOMPUTE(saved.segment)
        return KEEP if is_late and self._limit.now() + saved.bytes <= self._keep_bytes else self._away

    def learn(self, sizes: list[int], remade: Set[int] = frozenset()) -> None:
        """After a forward that saved spans of these sizes, in this order; `remade` are indices of those dropped."""
        self._keep_bytes = self._limit.keep_bytes(sum(sizes))
        left_bytes, first = self._keep_bytes, len(sizes)
        if self._limit.budget_bytes is not None:
            remade = frozenset()  # where they would count as late, they would be kept
        while first > 0 and (first - 1 in remade or sizes[first - 1] <= left_bytes):
            first -= 1
            left_bytes -= 0 if first in remade else sizes[first]
        self._keep_from = first


def away_from(device_type: str) -> Decision:
    """The first tier below a device."""
    return HOST if device_type == "cuda" else FILE


def make_policy(policy: str | Policy, device_type: str, limit: KeepLimit | None = None) -> Policy:
    """The callable behind a policy's name; raises InputError for a name that is none."""
    away = away_from(device_type)
    if callable(policy):
        return policy
    if policy == "all":
        return SwapAll(away)
    if policy == "inputs":
        return InputsOnly(away)
    if policy == "auto":
        return Measured(away, limit or KeepLimit())
    raise InputError(f"policy: wanted one of {', '.join(NAMES)} or a callable, found {policy!r}; use policy='auto'")


def checked(decision: object, saved: SavedTensor) -> Decision:
    """A decision that can be carried out for the saved tensor; else a typed error."""
    if not isinstance(decision, Decision):
        raise InputError(f"a policy returned {decision!r}; return memsys.KEEP, memsys.HOST or memsys.FILE")
    is_cheap = saved.segment is not None and decision == RECOMPUTE(saved.segment)
    is_row = saved.row_segment is not None and decision.segment == saved.row_segment
    if (decision.place is Place.RECOMPUTE and not is_cheap) or (decision.place is Place.ROWS and not is_row):
        raise UnsupportedError(
            f"the policy chose {decision.place.name} of {decision.segment!r}, which it was not offered; return KEEP, "
            "HOST, FILE or, where they are not None, RECOMPUTE(saved.segment) or ROWS(alpha, saved.row_segment), or "
            "wrap the layer in memsys.checkpoint"
        )
    if decision.place is Place.ROWS and not 0 <= decision.alpha <= 1:
        raise InputError(f"ROWS: wanted an alpha from 0 to 1, found {decision.alpha!r}; it is the share of the rows "
                         "that is swapped")  # fmt: skip
    if decision.away not in (None, Place.HOST, Place.FILE):
        raise InputError(f"ROWS: wanted away=Place.HOST or Place.FILE, found {decision.away!r}; leave it out")
    return decision
