"""The least slab for one block's requests, or a proof of how far a plan is from it, by constraint programming.

Each request is a rectangle, its life by its bytes; no two may overlap, and the highest top is to be least. Google's
CP-SAT knows such rectangles as one constraint. A mixed-integer program needs an either-or for each pair alive
together, whose relaxation says nothing about the slab, and is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memsys.errors import UnsupportedError
from memsys.planning.trace import Request


def place_exactly(
    requests: Sequence[Request], alignment: int, found: Mapping[str, object], seconds: float
) -> dict[str, object]:
    """Improves on the plan `found` (offsets, peak_bytes, bound_bytes, order) for at most `seconds`.

    Returns a plan of the same form; its bound_bytes is the greatest that was proven, equal to peak_bytes if the plan
    is the best there is. Raises UnsupportedError without ortools.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise UnsupportedError("exact addresses: CP-SAT is not installed; `pip install ortools`, or leave "
                               "exact_seconds at 0 for the heuristic plan and its gap") from None  # fmt: skip
    model = cp_model.CpModel()
    most, least = found["peak_bytes"] // alignment, found["bound_bytes"] // alignment
    peak = model.new_int_var(least, most, "peak")
    offsets, lives, spans = [], [], []
    for index, request in enumerate(requests):
        units = -(-request.bytes // alignment)
        offset = model.new_int_var(0, most - units, f"offset {index}")
        model.add(offset + units <= peak)
        model.add_hint(offset, found["offsets"][index] // alignment)
        offsets.append(offset)
        lives.append(model.new_fixed_size_interval_var(request.begin, request.end - request.begin, f"life {index}"))
        spans.append(model.new_fixed_size_interval_var(offset, units, f"span {index}"))
    model.add_no_overlap_2d(lives, spans)
    model.minimize(peak)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return dict(found)
    bound = max(found["bound_bytes"], round(solver.best_objective_bound) * alignment)
    if solver.value(peak) >= most:
        return {**found, "bound_bytes": bound, "order": f"{found['order']}, bound by cp-sat"}
    return {
        "offsets": [solver.value(offset) * alignment for offset in offsets],
        "peak_bytes": solver.value(peak) * alignment,
        "bound_bytes": bound,
        "order": "cp-sat",
    }
