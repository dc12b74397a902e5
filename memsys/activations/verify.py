"""memsys.verify: one forward and backward with offload and one without, compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from memsys import _tensor
from memsys.activations.offload import _function_of, offload, restore
from memsys.errors import InputError


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
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("verify: no parameter requires a gradient; pass a model in training")
    step = _Step(model, tuple(args), dict(kwargs or {}), loss or _sum_of_outputs)
    # DDP and its like call the offloaded module inside of them.
    inner = getattr(model, "module", None)
    function = _function_of(model) or (_function_of(inner) if isinstance(inner, torch.nn.Module) else None)
    if function is None:
        offload(model, min_bytes=0, policy="all")
        function = _function_of(model)
        try:
            return _compare(step, function)
        finally:
            restore(model)
    return _compare(step, function)


def _compare(step: _Step, function: Callable) -> VerifyReport:
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


class _Step:
    """One forward and backward, from the same random state and buffers each time."""

    def __init__(self, model: torch.nn.Module, args: tuple, kwargs: dict, loss: Callable) -> None:
        self._model, self._args, self._kwargs, self._loss = model, args, kwargs, loss
        self._devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]

    def run(self) -> dict[str, torch.Tensor | None]:
        parameters = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        kept = {name: value.grad for name, value in parameters.items()}
        buffers = {name: value.detach().clone() for name, value in self._model.named_buffers()}
        for value in parameters.values():
            value.grad = None
        try:
            with torch.random.fork_rng(devices=self._devices):
                result = self._loss(self._model(*self._args, **self._kwargs))
                result.backward()
            found = {"loss": result.detach().clone().reshape(1)}
            # Of a sharded parameter, this process's part.
            grads = {name: value.grad for name, value in parameters.items()}
            found |= {name: None if grad is None else _tensor.local_tensor(grad) for name, grad in grads.items()}
            return found
        finally:
            for name, value in parameters.items():
                value.grad = kept[name]
            with torch.no_grad():
                for name, value in self._model.named_buffers():
                    value.copy_(buffers[name])


def _sum_of_outputs(output: object) -> torch.Tensor:
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    tensors = [value for value in _leaves(output) if value.is_floating_point() and value.requires_grad]
    if not tensors:
        raise InputError("verify: the model's output holds no tensor that requires a gradient; pass loss=")
    return sum(value.float().sum() for value in tensors)


def _leaves(output: object) -> list[torch.Tensor]:
    return [value for value in _tensor.leaves_of(output) if isinstance(value, torch.Tensor)]
