"""Models of PyTorch's CUDA caching allocator, to set a plan of addresses beside: how much it would have reserved for
the same requests.

By the rules of c10/cuda/CUDACachingAllocator.cpp with its default settings, on a GPU large enough that it never has to
give anything back. Sizes are rounded to 512 bytes. Up to 1 MiB a request belongs to the small pool, above it to the
large one; pools are kept apart by stream. A request takes the smallest free block that holds it, which is split if
enough remains; freed neighbours merge.

Classic: what fits nowhere takes a segment from the driver, of 2 MiB for small requests, of 20 MiB for those below
10 MiB, else of its own size rounded to 2 MiB; a large block is split only if more than 1 MiB remains.
Expandable (`expandable_segments:True`): each pool is one range of addresses, mapped as far as it was ever needed, in
pages of 2 MiB (small) and 20 MiB (large); any block is split; the free block at the end of what is mapped counts as
endless, so that one inside is preferred.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memsys.planning.trace import Request

_UNIT = 512
_SMALL = 1 << 20  # the largest small request
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_OWN_SEGMENT = 10 << 20  # from here on a request gets a segment of its own size
_ROUND_OWN = 2 << 20
_SEGMENT_DISTANCE = 1 << 50  # between the addresses of two segments: they never merge


@dataclass(frozen=True)
class Replay:
    """What an allocator came to: reserved over live is its waste."""

    reserved_peak_bytes: int
    live_peak_bytes: int
    segment_count: int  # pieces taken from the driver

    @property
    def ratio(self) -> float:
        return self.reserved_peak_bytes / self.live_peak_bytes if self.live_peak_bytes else 1.0


def replay_classic(requests: Sequence[Request], steps: int = 2) -> Replay:
    """The caching allocator as it is by default. The step is repeated with what is cached, as in training."""
    return _replay(requests, steps, _ClassicPool)


def replay_expandable(requests: Sequence[Request], steps: int = 2) -> Replay:
    """The caching allocator under PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""
    return _replay(requests, steps, _ExpandablePool)


def events_of(requests: Sequence[Request]) -> Iterator[tuple[bool, int]]:
    """(is an allocation, index) in the order of the step; at one position releases come first."""
    events = [(r.begin, 1, i) for i, r in enumerate(requests)] + [(r.end, 0, i) for i, r in enumerate(requests)]
    for _, kind, index in sorted(events):
        yield kind == 1, index


class _Pool:
    """Free blocks by size and by address."""

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.reserved_bytes = self.segment_count = 0
        self._by_size: list[tuple[int, int]] = []
        self._ends: dict[int, int] = {}  # free blocks: begin -> end
        self._begins: dict[int, int] = {}  # end -> begin
        self._sizes: dict[int, int] = {}  # blocks handed out, as large as they really are

    def allocate(self, bytes_: int) -> int:
        begin, size = self.take(bytes_)
        if self.splits(size - bytes_):
            self._add(begin + bytes_, begin + size)
            size = bytes_
        self._sizes[begin] = size
        return begin

    def free(self, begin: int) -> None:
        end = begin + self._sizes.pop(begin)
        if begin in self._begins:
            begin = self._remove(self._begins[begin])[0]
        if end in self._ends:
            end = self._remove(end)[1]
        self._add(begin, end)

    def _add(self, begin: int, end: int) -> None:
        insort(self._by_size, (end - begin, begin))
        self._ends[begin], self._begins[end] = end, begin

    def _remove(self, begin: int) -> tuple[int, int]:
        end = self._ends.pop(begin)
        del self._begins[end]
        del self._by_size[bisect_left(self._by_size, (end - begin, begin))]
        return begin, end

    def check(self) -> None:
        """Raises AssertionError unless free and used blocks tile what is reserved."""
        blocks = [*self._ends.items(), *((begin, begin + size) for begin, size in self._sizes.items())]
        blocks.sort()
        assert all(left[1] <= right[0] for left, right in pairwise(blocks))
        assert sum(end - begin for begin, end in blocks) == self.reserved_bytes


class _ClassicPool(_Pool):
    def splits(self, rest: int) -> bool:
        return rest >= _UNIT if self.is_small else rest > _SMALL

    def take(self, bytes_: int) -> tuple[int, int]:
        place = bisect_left(self._by_size, (bytes_, 0))
        if place < len(self._by_size):
            begin, end = self._remove(self._by_size[place][1])
            return begin, end - begin
        self.segment_count += 1
        size = self._segment_bytes(bytes_)
        self.reserved_bytes += size
        return self.segment_count * _SEGMENT_DISTANCE, size

    def _segment_bytes(self, bytes_: int) -> int:
        if self.is_small:
            return _SMALL_SEGMENT
        return _LARGE_SEGMENT if bytes_ < _OWN_SEGMENT else -(-bytes_ // _ROUND_OWN) * _ROUND_OWN


class _ExpandablePool(_Pool):
    def splits(self, rest: int) -> bool:
        return rest >= _UNIT

    def take(self, bytes_: int) -> tuple[int, int]:
        tail = self._begins.get(self.reserved_bytes)  # the free block at the end of what is mapped
        place = bisect_left(self._by_size, (bytes_, 0))
        if place < len(self._by_size) and self._by_size[place][1] == tail and place + 1 < len(self._by_size):
            place += 1
        if place < len(self._by_size):
            begin, end = self._remove(self._by_size[place][1])
            return begin, end - begin
        begin = self.reserved_bytes if tail is None else self._remove(tail)[0]
        page = _SMALL_SEGMENT if self.is_small else _LARGE_SEGMENT
        self.segment_count += 1
        self.reserved_bytes = -(-(begin + bytes_) // page) * page
        return begin, self.reserved_bytes - begin


def _replay(requests: Sequence[Request], steps: int, kind: type[_Pool]) -> Replay:
    pools: dict[tuple[int, bool], _Pool] = {}
    live = live_peak = 0
    events = list(events_of(requests))
    for _ in range(steps):
        places: dict[int, int] = {}
        for is_allocation, index in events:
            request = requests[index]
            if request.bytes == 0:
                continue
            rounded = -(-request.bytes // _UNIT) * _UNIT
            is_small = rounded <= _SMALL
            pool = pools.setdefault((request.stream, is_small), kind(is_small))
            if is_allocation:
                places[index] = pool.allocate(rounded)
                live += request.bytes
                live_peak = max(live_peak, live)
            else:
                pool.free(places.pop(index))
                live -= request.bytes
    for pool in pools.values():
        pool.check()
    reserved = sum(pool.reserved_bytes for pool in pools.values())  # nothing goes back: the last is the most
    return Replay(reserved, live_peak, sum(pool.segment_count for pool in pools.values()))
