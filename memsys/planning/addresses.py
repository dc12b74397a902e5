"""Plans where a step's requests lie in one slab: MEMO's bi-level dynamic storage allocation (SIGMOD'25, section 4.2),
with the gap to a proven lower bound always told.

Level 1 places the transients of one block (one layer's forward, or its backward) in a slab of their own, once for all
blocks that ask alike. Level 2 places the whole step, each block one request. The same step is planned without blocks
too, and the smaller slab wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from memsys import _C
from memsys.errors import InputError
from memsys.planning import document
from memsys.planning.exact_addresses import place_exactly
from memsys.planning.trace import Request

FORMAT = "memsys-addresses-2"
ALIGNMENT = 512  # what torch's own allocator aligns to, so that no kernel finds its tensors worse aligned
_WORK = 300_000_000  # comparisons a plan may take: about half a second
_BLOCK_WORK = 30_000_000


@dataclass(frozen=True)
class BlockPlan:
    """Level 1: how the transients of blocks that ask alike were placed. count: of such blocks."""

    layer: int
    phase: str
    count: int
    request_count: int
    peak_bytes: int
    bound_bytes: int
    solver: str

    @property
    def gap(self) -> float:
        return _gap(self.peak_bytes, self.bound_bytes)


@dataclass(frozen=True)
class AddressPlan:
    """Offsets for the requests of one step, in their order; -1 for those that are not planned (of other streams).

    peak_bytes: the slab's size; bound_bytes: the most that the planned requests have alive at once, each rounded to
    `alignment`: no slab can be smaller; gap: by what share the slab exceeds it, 0.0 being a proven optimum; solver:
    what found the plan.
    """

    requests: tuple[Request, ...]
    offsets: tuple[int, ...]
    alignment: int
    peak_bytes: int
    bound_bytes: int
    solver: str
    blocks: tuple[BlockPlan, ...] = ()

    @property
    def gap(self) -> float:
        return _gap(self.peak_bytes, self.bound_bytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        document.write(path, FORMAT, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AddressPlan:
        """Reads what `save` wrote and checks it. Raises InputError for a file that is no plan or contradicts itself."""
        with document.refusing(path, "a plan of addresses that memsys saved", "plan it again by plan_addresses"):
            plan = document.read(path, FORMAT, cls)
            _check(plan)
        return plan


def plan_addresses(
    requests: Sequence[Request], *, alignment: int = ALIGNMENT, exact_seconds: float = 0.0, stream: int = 0
) -> AddressPlan:
    """Plans the addresses of a step's requests.

    Args:
        requests: in order of `begin`, as `record_allocations` gives them; those of no bytes or no life get no address.
        alignment: of offsets and sizes, a power of two.
        exact_seconds: for each kind of block whose level-1 plan does not reach its bound, how long to look for the
            least slab, or a proof, with CP-SAT (`pip install ortools`); 0: not at all.
        stream: whose requests are planned: reuse within one stream needs no waiting.

    Every plan is checked for overlaps before it is given back.
    Raises InputError for requests out of order, UnsupportedError for exact_seconds without ortools.
    """
    requests = tuple(requests)
    if any(left.begin > right.begin for left, right in pairwise(requests)):
        raise InputError("plan_addresses: requests are not in order of `begin`; sort them by it")
    planned = [index for index, request in enumerate(requests)
               if request.stream == stream and request.bytes > 0 and request.begin < request.end]  # fmt: skip
    flat = [requests[index] for index in planned]
    if not flat:
        return AddressPlan(requests, (-1,) * len(requests), alignment, 0, 0, "nothing to plan")
    whole = _place(flat, alignment, _WORK)
    offsets, peak_bytes, solver = whole["offsets"], whole["peak_bytes"], whole["order"]
    blocks, inner, outer = _by_blocks(flat, alignment, exact_seconds)
    if blocks and outer["peak_bytes"] <= peak_bytes:
        offsets, peak_bytes = inner, outer["peak_bytes"]
        solver = f"bi-level, {outer['order']}"
    placed = dict(zip(planned, offsets, strict=True))
    plan = AddressPlan(requests, tuple(placed.get(index, -1) for index in range(len(requests))), alignment, peak_bytes,
                       whole["bound_bytes"], solver, blocks)  # fmt: skip
    _check(plan)
    return plan


def _gap(peak_bytes: int, bound_bytes: int) -> float:
    return peak_bytes / bound_bytes - 1.0 if bound_bytes else 0.0


def _columns(requests: Sequence[Request]) -> tuple[list[int], list[int], list[int]]:
    return [r.bytes for r in requests], [r.begin for r in requests], [r.end for r in requests]


def _place(requests: Sequence[Request], alignment: int, work: int) -> dict:
    return _C.plan_lifetimes(*_columns(requests), alignment=alignment, work_limit=work)


def _check(plan: AddressPlan) -> None:
    placed = [(r, offset) for r, offset in zip(plan.requests, plan.offsets, strict=True) if offset >= 0]
    end = _C.check_placement(*_columns([r for r, _ in placed]), [offset for _, offset in placed], plan.alignment)
    if end > plan.peak_bytes:
        raise ValueError(f"the requests end at {end} in a slab of {plan.peak_bytes} bytes")


def _runs(requests: Sequence[Request]) -> Iterator[list[int]]:
    """The transients of each visit to a block: what begins in it and ends before something else asks for memory."""
    runs = [list(run) for _, run in groupby(range(len(requests)), lambda i: (requests[i].layer, requests[i].phase))]
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        until = requests[following[0]].begin if following else max(r.end for r in requests)
        if requests[run[0]].layer >= 0:
            yield [index for index in run if requests[index].end <= until]


def _by_blocks(flat: list[Request], alignment: int, seconds: float) -> tuple[tuple[BlockPlan, ...], list[int], dict]:
    """The blocks, the offset of each request by both levels, and the plan of level 2."""
    known: dict[tuple, dict] = {}
    counts: dict[tuple, list] = {}
    blocks: list[tuple[list[int], dict]] = []
    for run in _runs(flat):
        if len(run) < 2:
            continue
        local = _renumbered([flat[index] for index in run])
        key = tuple((r.bytes, r.begin, r.end) for r in local)
        if key not in known:
            known[key] = _level_1(local, alignment, seconds)
            counts[key] = [flat[run[0]], 0]
        counts[key][1] += 1
        blocks.append((run, known[key]))
    inside = {index for run, _ in blocks for index in run}
    alone = [index for index in range(len(flat)) if index not in inside]
    wholes = [Request(found["peak_bytes"], min(flat[i].begin for i in run), max(flat[i].end for i in run))
              for run, found in blocks]  # fmt: skip
    outer = _place([*(flat[index] for index in alone), *wholes], alignment, _WORK)
    offsets = [-1] * len(flat)
    for index, offset in zip(alone, outer["offsets"], strict=False):
        offsets[index] = offset
    for (run, found), base in zip(blocks, outer["offsets"][len(alone) :], strict=True):
        for index, offset in zip(run, found["offsets"], strict=True):
            offsets[index] = base + offset
    plans = tuple(BlockPlan(first.layer, first.phase, count, len(key), known[key]["peak_bytes"],
                            known[key]["bound_bytes"], known[key]["order"])
                  for key, (first, count) in counts.items())  # fmt: skip
    return plans, offsets, outer


def _level_1(local: list[Request], alignment: int, seconds: float) -> dict:
    found = _place(local, alignment, _BLOCK_WORK)
    if seconds > 0 and found["peak_bytes"] > found["bound_bytes"]:
        exact = place_exactly(local, alignment, found, seconds)
        _C.check_placement(*_columns(local), exact["offsets"], alignment)
        return exact
    return found


def _renumbered(requests: list[Request]) -> list[Request]:
    """The same lives counted from 0 without gaps: what tells one block's requests from another's."""
    positions = sorted({position for r in requests for position in (r.begin, r.end)})
    number = {position: index for index, position in enumerate(positions)}
    return [Request(r.bytes, number[r.begin], number[r.end]) for r in requests]
