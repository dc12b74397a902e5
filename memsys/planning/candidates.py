"""Plans from a few numbers: how much is kept, how late, how much is made again, how much goes to the file.

What is saved late is read early: kept, it needs no transfer just where there is the least time for one. But where the
links are the limit, they must be busy all the time, and what is kept is spread over the layers. What is made again is
the cheapest by the byte; where several are as cheap (the same operation of every layer), each layer does its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memsys.planning.menu import Menu
from memsys.planning.swap_plan import Budgets, Choice, Hardware, SwapPlan

_MOVE, _KEEP, _MADE, _ROWS = range(4)


@dataclass(frozen=True)
class Knobs:
    """keep_bytes: at most so much is kept; lateness: 1 keeps what is saved last, 0 an even share; made_share: of all
    that can be made again; keeps_first: what is kept is chosen before what is made again, not from the rest;
    file_share: of what moves, to the file, besides what the host has no room for."""

    keep_bytes: float
    lateness: float = 1.0
    made_share: float = 0.0
    keeps_first: bool = True
    file_share: float = 0.0


class Builder:
    """Makes plans for one trace, hardware and budgets."""

    def __init__(self, menu: Menu, hardware: Hardware, budgets: Budgets) -> None:
        self.menu = menu
        self.hardware = hardware
        self.budgets = budgets
        self.classes = menu.classes()
        self.makeable_bytes = sum(item.bytes for item in self.classes)
        self._order = np.argsort(menu.saved_us, kind="stable")

    def build(self, knobs: Knobs) -> SwapPlan:
        kinds = np.full(len(self.menu.bytes), _MOVE)
        alphas: dict[int, float] = {}
        if knobs.keeps_first:
            self._keep(kinds, knobs, knobs.keep_bytes)
            self._make(kinds, alphas, knobs.made_share)
        else:
            self._make(kinds, alphas, knobs.made_share)
            left = knobs.keep_bytes - self._keep(kinds, knobs, knobs.keep_bytes)
            self._keep_made(kinds, left)
        return self._place(kinds, alphas, knobs.file_share)

    def _keep(self, kinds: np.ndarray, knobs: Knobs, keep_bytes: float) -> float:
        """Keeps some of what would move; returns how much."""
        order = self._order[kinds[self._order] == _MOVE]
        sizes = self.menu.bytes[order].tolist()
        total, kept, stop = sum(sizes), 0.0, len(sizes)
        late_bytes = knobs.lateness * min(keep_bytes, total)
        for place in range(len(sizes) - 1, -1, -1):
            if kept + sizes[place] > late_bytes:
                break
            kept += sizes[place]
            kinds[order[place]] = _KEEP
            stop = place
        rest = total - kept
        share = min(1.0, (keep_bytes - kept) / rest) if rest > 0 else 0.0
        owed = 0.0
        for place in range(stop):
            owed += share * sizes[place]
            if owed >= sizes[place] and kept + sizes[place] <= keep_bytes:
                owed -= sizes[place]
                kept += sizes[place]
                kinds[order[place]] = _KEEP
        return kept

    def _keep_made(self, kinds: np.ndarray, left: float) -> None:
        """Keeps of what would be made again, the last first, what there is room for."""
        for index in self._order[::-1]:
            if kinds[index] in (_MADE, _ROWS) and self.menu.bytes[index] <= left:
                kinds[index] = _KEEP
                left -= self.menu.bytes[index]

    def _make(self, kinds: np.ndarray, alphas: dict[int, float], share: float) -> None:
        left = share * self.makeable_bytes
        for item in self.classes:
            if left <= 0:
                return
            part = min(1.0, left / item.bytes)
            left -= item.bytes
            self._make_spans(kinds, item.spans, part)
            for id_ in item.segments:
                self._divide(kinds, alphas, id_, 1.0 - part)

    def _make_spans(self, kinds: np.ndarray, spans: tuple[int, ...], part: float) -> None:
        owed = 0.0
        for index in spans:
            size = int(self.menu.bytes[index])
            owed += part * size
            if owed >= size * (1 - 1e-9):
                owed -= size
                if kinds[index] == _MOVE:
                    kinds[index] = _MADE

    def _divide(self, kinds: np.ndarray, alphas: dict[int, float], id_: int, alpha: float) -> None:
        """Divides a segment; where it is run again whole, that gives also what would be made again by itself."""
        members = [index for index in self.menu.dividable[id_] if kinds[index] == _MOVE or (
            alpha == 0.0 and kinds[index] == _MADE)]  # fmt: skip
        if any(kinds[index] == _MOVE for index in members):
            kinds[members] = _ROWS
            alphas[id_] = alpha

    def _place(self, kinds: np.ndarray, alphas: dict[int, float], file_share: float) -> SwapPlan:
        """Finds each tier: the host first; to the file what is saved first, and so has the most time."""
        hardware, limit = self.hardware, self.budgets.host_bytes
        to_host, to_file = (Choice.HOST, Choice.FILE) if hardware.file is not None else (Choice.HOST, Choice.HOST)
        host_left = float("inf") if limit is None else float(limit)
        if hardware.host is None:
            to_host, host_left = Choice.FILE, float("inf")
        row_tier = to_host
        if alphas:
            row_bytes = self._row_bytes(kinds, alphas)
            if row_bytes > host_left:
                row_tier = to_file
            else:
                host_left -= row_bytes
        chosen = [(Choice.HOST, Choice.KEEP, Choice.RECOMPUTE, Choice.ROWS)[kind] for kind in kinds.tolist()]
        order = self._order[kinds[self._order] == _MOVE].tolist()
        sizes = self.menu.bytes[order].tolist()
        file_left, owed = max(0.0, sum(sizes) - host_left), 0.0
        for index, size in zip(order, sizes, strict=True):
            owed += file_share * size
            goes_to_file = file_left > 0 or owed >= size
            chosen[index] = to_file if goes_to_file else to_host
            if goes_to_file:
                file_left -= size
                owed = max(0.0, owed - size)
        return SwapPlan(tuple(chosen), alphas, row_tier)

    def _row_bytes(self, kinds: np.ndarray, alphas: dict[int, float]) -> float:
        """About how much of the divided segments moves, rounded up."""
        found = 0.0
        for id_, alpha in alphas.items():
            rows = self.menu.segments[id_].row_count
            members = [index for index in self.menu.dividable[id_] if kinds[index] == _ROWS]
            found += float(self.menu.bytes[members].sum()) * min(1.0, alpha + 1.0 / max(1, rows))
        return found
