"""memsys.verify: one forward and backward with offload and one without, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from memsys.activations.offload import function_of, offload, restore
from memsys.activations.trial import TrialStep


@dataclass
class VerifyReport:
    """equal: whether loss and every gradient agree bit for bit; repeatable: whether the model without memsys agrees
    with itself (if not, a difference says nothing); different: names that differ; compared_count: gradients."""

    equal: bool
    repeatable: bool
    compared_count: int
    different: list[str] = field(default_factory=list)
    packed_count: int = 0
    out_bytes: int = 0

    def __str__(self) -> str:
        verdict = "bit for bit equal" if self.equal else f"DIFFERENT: {', '.join(self.different[:5])}"
        note = "" if self.repeatable else "; the model does not repeat itself even without memsys"
        return (f"verify: loss and {self.compared_count} gradients {verdict} with and without memsys "
                f"({self.packed_count} tensors, {self.out_bytes} bytes moved){note}")  # fmt: skip


def verify(
    model: torch.nn.Module, args: tuple = (), kwargs: dict | None = None, loss: Callable | None = None
) -> VerifyReport:
    """Runs one step three times from the same random state: twice without memsys, once with, and compares.

    Args:
        model: offloaded or not (then with default options, for the comparison only). Gradients, buffers and the
            random state are as before afterwards.
        args, kwargs: of the model's forward. loss: output -> scalar; by default the sum of all floating outputs.

    Raises:
        InputError: if the model has no parameter that requires a gradient.
    """
    step = TrialStep("verify", model, args, kwargs, loss)
    # DDP and its like call the offloaded module inside of them.
    inner = getattr(model, "module", None)
    function = function_of(model) or (function_of(inner) if isinstance(inner, torch.nn.Module) else None)
    if function is None:
        offload(model, min_bytes=0, policy="all")
        function = function_of(model)
        try:
            return _compare(step, function)
        finally:
            restore(model)
    return _compare(step, function)


def _compare(step: TrialStep, function: Callable) -> VerifyReport:
    session = function.memsys_session
    before = session.stats()
    function.memsys_session = None
    try:
        plain, again = step.run(), step.run()
    finally:
        function.memsys_session = session
    moved = step.run()
    after = session.stats()
    different = [name for name in plain if not _same_bits(plain[name], moved[name])]
    return VerifyReport(
        equal=not different,
        repeatable=all(_same_bits(plain[name], again[name]) for name in plain),
        compared_count=sum(value is not None for value in plain.values()) - 1,
        different=different,
        packed_count=after.packed_count - before.packed_count,
        out_bytes=after.out_bytes - before.out_bytes,
    )


def _same_bits(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left, right = left.contiguous(), right.contiguous()
    return left.numel() == 0 or torch.equal(left.view(-1).view(torch.uint8), right.view(-1).view(torch.uint8))
