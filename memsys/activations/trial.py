"""One step of a model for the sake of what it tells, after which the model is as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from memsys import _tensor
from memsys.errors import InputError


class TrialStep:
    """One forward and backward, from the same random state and buffers each time; gradients stay as they were."""

    def __init__(self, asker: str, model: torch.nn.Module, args: tuple, kwargs: dict | None,
                 loss: Callable | None) -> None:  # fmt: skip
        """asker: named in errors. loss: output -> scalar; by default the output's own, or the sum of all floating
        outputs. Raises InputError if the model has no parameter that requires a gradient."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"{asker}: no parameter requires a gradient; pass a model in training")
        self._asker = asker
        self._model, self._args, self._kwargs = model, tuple(args), dict(kwargs or {})
        self._loss = loss or self._sum_of_outputs
        self._devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]

    def run(self) -> dict[str, torch.Tensor | None]:
        """The loss, and each parameter's gradient by its name."""
        parameters = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        with self._unchanged(parameters):
            with torch.random.fork_rng(devices=self._devices):
                result = self._loss(self._model(*self._args, **self._kwargs))
                result.backward()
            found = {"loss": result.detach().clone().reshape(1)}
            # Of a sharded parameter, this process's part.
            grads = {name: value.grad for name, value in parameters.items()}
            return found | {name: None if grad is None else _tensor.local_tensor(grad) for name, grad in grads.items()}

    @contextmanager
    def _unchanged(self, parameters: dict[str, torch.nn.Parameter]) -> Iterator[None]:
        kept = {name: value.grad for name, value in parameters.items()}
        buffers = {name: value.detach().clone() for name, value in self._model.named_buffers()}
        for value in parameters.values():
            value.grad = None
        try:
            yield
        finally:
            for name, value in parameters.items():
                value.grad = kept[name]
            with torch.no_grad():
                for name, value in self._model.named_buffers():
                    value.copy_(buffers[name])

    def _sum_of_outputs(self, output: object) -> torch.Tensor:
        loss = getattr(output, "loss", None)
        if isinstance(loss, torch.Tensor):
            return loss
        leaves = [value for value in _tensor.leaves_of(output) if isinstance(value, torch.Tensor)]
        tensors = [value for value in leaves if value.is_floating_point() and value.requires_grad]
        if not tensors:
            raise InputError(f"{self._asker}: the model's output holds no tensor that requires a gradient; pass loss=")
        return sum(value.float().sum() for value in tensors)
