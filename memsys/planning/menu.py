"""What may become of each span of a trace, and at what price: what solvers and bounds choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memsys.planning.layers import layer_spans
from memsys.planning.trace import StepTrace

_SAME_PRICE = 0.02  # prices that differ by less are of one class: identical layers, measured


@dataclass(frozen=True)
class PriceClass:
    """Bytes that need not move, at about one price: spans that one operation makes again, and divisible segments."""

    price: float  # microseconds of compute a byte
    bytes: int
    spans: tuple[int, ...]
    segments: tuple[int, ...]


class Menu:
    """Arrays by span index. own_price: to make it again by its operation, in us a byte (inf: it can't be);
    price: the least of that, its segment's and, with may_rerun, its layer's; divisible: by segment, what ROWS may
    divide; dividable: what is best divided (nothing that a segment reads whole)."""

    def __init__(self, trace: StepTrace, may_rerun: bool = False) -> None:
        self.trace = trace
        spans = trace.spans
        self.bytes = np.array([span.bytes for span in spans], dtype=np.int64)
        self.saved_us = np.array([span.saved_us for span in spans], dtype=float)
        self.first_us = np.array([span.first_use_us for span in spans], dtype=float)
        self.last_us = np.array([span.last_use_us for span in spans], dtype=float)
        self.own_price = np.array([_own_price(trace, index) for index in range(len(spans))], dtype=float)
        self.segments = {segment.id: segment for segment in trace.segments}
        self.row_inputs = {index for segment in trace.segments for index in segment.inputs}
        self.may_rerun = may_rerun
        self.divisible = by_segment = {segment.id: [] for segment in trace.segments}
        for index, span in enumerate(spans):
            if span.row_bytes > 0 and span.segment in self.segments:
                by_segment[span.segment].append(index)
        self.price = self.own_price.copy()
        for id_, members in by_segment.items():
            self._lower(members, self.segments[id_].remake_us)
        whole = ((id_, [index for index in found if index not in self.row_inputs]) for id_, found in by_segment.items())
        self.dividable = {id_: members for id_, members in whole if members}
        self._first_reads_us = [self.segments[id_].first_use_us for id_, members in by_segment.items() if members]
        if may_rerun:
            for layer in layer_spans(trace).values():
                if layer.inputs:
                    self._lower(list(layer.inner), layer.forward_us)

    def _lower(self, members: list[int], us: float) -> None:
        bytes_ = int(self.bytes[members].sum()) if members else 0
        if bytes_:
            self.price[members] = np.minimum(self.price[members], us / bytes_)

    @property
    def turn_us(self) -> float:
        """No span is read before: the first use of any, or of a segment that may be run again for one."""
        step_us = self.trace.forward_us + self.trace.backward_us
        return min(step_us, float(self.first_us.min(initial=step_us)), *self._first_reads_us)

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at once if all is kept. What is read last when something else is saved or read goes
        first, unless it was read only then."""
        moments = np.concatenate((self.saved_us, self.last_us))
        changes = np.concatenate((self.bytes, -self.bytes))
        turns = np.concatenate((np.zeros(len(self.bytes)), np.where(self.last_us > self.first_us, 1, 2)))
        return int(np.cumsum(changes[np.lexsort((turns, moments))]).max(initial=0))

    def classes(self) -> list[PriceClass]:
        """The cheapest first. A span that its own operation makes for less than its segment counts on its own."""
        own = [(float(self.own_price[i]), int(self.bytes[i]), i, None) for i in np.flatnonzero(self.own_price < np.inf)]
        found = {index: item for item in own for index in (item[2],)}
        items = []
        for id_, members in self.dividable.items():
            us = self.segments[id_].remake_us
            whole_price = us / max(1, int(self.bytes[members].sum()))
            dearer = [index for index in members if self.own_price[index] >= whole_price]
            bytes_ = int(self.bytes[dearer].sum()) if dearer else 0
            if bytes_:
                items.append((us / bytes_, bytes_, None, id_))
                for index in dearer:
                    found.pop(index, None)
        items += [item for index, item in found.items() if index not in self.row_inputs]
        items.sort(key=lambda item: (item[0], item[3] is None, item[2] or 0, item[3] or 0))
        classes: list[list] = []
        for item in items:
            if not classes or item[0] > classes[-1][0][0] * (1 + _SAME_PRICE) + 1e-12:
                classes.append([])
            classes[-1].append(item)
        return [
            PriceClass(
                group[0][0], sum(item[1] for item in group),
                tuple(sorted(int(item[2]) for item in group if item[2] is not None)),
                tuple(item[3] for item in group if item[3] is not None),
            )
            for group in classes
        ]  # fmt: skip


def _own_price(trace: StepTrace, index: int) -> float:
    span = trace.spans[index]
    can_be = span.remake_us is not None and all(0 <= wanted < index for wanted in span.remake_inputs)
    return span.remake_us / max(1, span.bytes) if can_be else math.inf
