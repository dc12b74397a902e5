"""A plan in a few lines: what goes where, what the step should cost, and how far from the best that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsys.budget import format_bytes

if TYPE_CHECKING:
    from memsys.planning.swap_plan import SwapPlan

_WORDS = (
    ("keep", "stay on the device"),
    ("host", "move to host memory"),
    ("file", "move to a file"),
    ("recompute", "are made again"),
    ("rows", "are divided by rows"),
)


def describe(plan: SwapPlan) -> str:
    """The text behind `print(plan)`."""
    lines = [*_places(plan)]
    if plan.predicted is not None:
        lines += _costs(plan)
    if plan.declined is not None:
        lines.append(f"nothing moves: {plan.declined}")
    return "\n".join(lines)


def _places(plan: SwapPlan) -> list[str]:
    lines = [f"{len(plan.choices)} saved tensors"]
    if plan.signature:
        lines[0] += f", {format_bytes(sum(plan.signature))}"
    for value, words in _WORDS:
        chosen = [index for index, choice in enumerate(plan.choices) if choice.value == value]
        if not chosen:
            continue
        line = f"  {len(chosen)} {words}"
        if plan.signature:
            line += f": {format_bytes(sum(plan.signature[index] for index in chosen))}"
        if value == "rows" and plan.alphas:
            low, high = min(plan.alphas.values()), max(plan.alphas.values())
            share = f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%}"
            line += f", {share} of the rows moved ({plan.row_tier.value}), the others computed again"
        if value == "recompute" and plan.reruns:
            line += f", {len(plan.reruns)} layers run again whole"
        lines.append(line)
    return lines


def _costs(plan: SwapPlan) -> list[str]:
    predicted = plan.predicted
    limits = {"device": plan.budgets.device_bytes, "host": plan.budgets.host_bytes, "file": plan.budgets.file_bytes}
    peaks = {"device": predicted.peak_device_bytes, "host": predicted.peak_host_bytes,
             "file": predicted.peak_file_bytes}  # fmt: skip
    shown = [
        f"{tier} {format_bytes(peaks[tier])}" + (f" of {format_bytes(limit)}" if limit is not None else "")
        for tier, limit in limits.items()
        if peaks[tier] or (limit is not None and tier == "device")
    ]
    lines = [
        f"predicted step: {_time(predicted.step_us)} (forward {_time(predicted.forward_us)}, backward "
        f"{_time(predicted.backward_us)}), of it waiting {_time(predicted.stall_us)}, computing again "
        f"{_time(predicted.remade_us)}",
        f"predicted peaks: {', '.join(shown)}; out {format_bytes(predicted.out_bytes)}, in "
        f"{format_bytes(predicted.in_bytes)}",
    ]
    if plan.bound_us > 0:
        lines.append(f"no plan takes less than {_time(plan.bound_us)}: this one at most {plan.gap:.1%} more "
                     f"({plan.solver}, solved in {_time(plan.solve_us)})")  # fmt: skip
    return lines


def _time(us: float) -> str:
    return f"{us / 1e6:.2f} s" if us >= 1e6 else f"{us / 1e3:.1f} ms" if us >= 1e3 else f"{us:.0f} us"
