"""A plan as people hold it: what was recorded, what was chosen within which budgets, and what it should come to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from memsys.budget import format_bytes
from memsys.planning import document
from memsys.planning.swap_plan import Budgets, Choice, Hardware, Prediction, SwapPlan
from memsys.planning.trace import StepTrace

if TYPE_CHECKING:
    from memsys.planning.schedule import Schedule

FORMAT = "memsys-plan-2"


@dataclass(frozen=True)
class Plan:
    """What memsys.plan returns; print it, save it, or give it to memsys.offload(model, plan=...).

    min_bytes: smaller tensors stay, and are not among the trace's spans.
    """

    trace: StepTrace
    swap: SwapPlan
    budgets: Budgets
    hardware: Hardware
    min_bytes: int

    @property
    def has_rows(self) -> bool:
        """Whether some tensors are divided by rows."""
        return Choice.ROWS in self.swap.choices

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        document.write(path, FORMAT, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what `save` wrote. Raises InputError for a file that is no plan, or not the one that was saved."""
        with document.refusing(path, "a plan that memsys saved", "make it again by memsys.plan"):
            plan = document.read(path, FORMAT, cls)
            plan.check()
        return plan

    def check(self) -> None:
        """Raises ValueError for a plan that contradicts itself or its trace."""
        self.trace.check()
        self.swap.check()
        if len(self.swap.choices) != len(self.trace.spans):
            raise ValueError(f"{len(self.swap.choices)} choices for {len(self.trace.spans)} spans")

    def schedule(self) -> Schedule:
        """The step under the plan: what each lane does when, and how full each tier is."""
        from memsys.planning.schedule import schedule

        return schedule(self.trace, self.swap, self.hardware, self.budgets)

    def bytes_of(self, choice: Choice) -> int:
        """Saved bytes that the plan treats so."""
        pairs = zip(self.trace.spans, self.swap.choices, strict=True)
        return sum(span.bytes for span, chosen in pairs if chosen is choice)

    @cached_property
    def bytes_of_kept(self) -> int:
        return self.bytes_of(Choice.KEEP)

    def __str__(self) -> str:
        trace, swap = self.trace, self.swap
        lines = [f"plan for {len(trace.spans)} saved tensors, {format_bytes(trace.saved_bytes)}, on {trace.device}"]
        for name, limit in (("device", self.budgets.device_bytes), ("host", self.budgets.host_bytes),
                            ("file", self.budgets.file_bytes)):  # fmt: skip
            if limit is not None:
                lines.append(f"  {name} budget {format_bytes(limit)}")
        for choice in Choice:
            count = swap.choices.count(choice)
            if count:
                lines.append(f"  {choice.value}: {count} tensors, {format_bytes(self.bytes_of(choice))}")
        if swap.declined is not None:
            lines.append(f"  nothing moves: {swap.declined}")
        lines.append(f"  compute {(trace.forward_us + trace.backward_us) / 1e3:.1f} ms a step")
        if swap.predicted is not None:
            lines += _prediction_lines(swap.predicted, swap.bound_us)
        if trace.transient_peak_bytes:
            lines.append(f"  beside these: transients of at most {format_bytes(trace.transient_peak_bytes)}")
        lines += [f"  beside these: {name} {format_bytes(count)}" for name, count in trace.resident_bytes.items()]
        lines.append(f"  solved by {swap.solver} in {swap.solve_us / 1e3:.1f} ms")
        return "\n".join(lines)


def _prediction_lines(predicted: Prediction, bound_us: float) -> list[str]:
    return [
        f"  predicted step {predicted.step_us / 1e3:.1f} ms (no plan can be under {bound_us / 1e3:.1f} ms), of it "
        f"waiting {predicted.stall_us / 1e3:.1f} ms, computing again {predicted.remade_us / 1e3:.1f} ms",
        f"  predicted peaks: device {format_bytes(predicted.peak_device_bytes)}, host "
        f"{format_bytes(predicted.peak_host_bytes)}, file {format_bytes(predicted.peak_file_bytes)}",
    ]
