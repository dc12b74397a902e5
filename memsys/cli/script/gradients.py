"""What a run of a script leaves behind: a line for each optimizer step, with a digest of every gradient.

Digests and not gradients, so that a long run leaves a small record. The bytes of one gradient are kept: the first that
is not what an earlier run had, or the one that is asked for by its place.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from memsys import _tensor
from memsys.cli.script.models import Models

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Place:
    """One gradient of one step: both counted from 0, the gradients in the order of the optimizer's parameters."""

    step: int
    position: int


class Enough(SystemExit):
    """As many steps as were asked for: ends the script."""


class GradientRecord:
    """Writes the record while a script runs; `attach` has torch tell it of every optimizer step."""

    def __init__(self, path: str, models: Models, *, kept_path: str, expected: str | None = None,
                 keep: Place | None = None, step_limit: int | None = None) -> None:  # fmt: skip
        """expected: an earlier record; the first gradient that differs from it is kept in `kept_path`. keep: the place
        of the gradient to keep. step_limit: after so many steps the script is ended."""
        self._path = path
        self._models = models
        self._kept_path = Path(kept_path)
        self._expected = read_steps(expected) if expected else None
        self._keep = keep
        self._step_limit = step_limit
        self._parameters: dict[int, tuple[weakref.ref, int]] = {}
        self._parameter_count = 0
        self._optimizers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._optimizer_count = 0
        self.step_count = 0

    def attach(self) -> None:
        register_optimizer_step_pre_hook(self._before_step)

    def write(self, kind: str, **facts: Any) -> None:
        with open(self._path, "a") as file:  # and closed again: a script may end in any way
            file.write(json.dumps({"kind": kind, **facts}) + "\n")

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Torch's hook. A closure makes the gradients during the step: then each of its calls is a step here."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.take(optimizer)
            return None

        def recorded() -> object:
            result = closure()
            self.take(optimizer)
            return result

        if len(args) > 1:
            return (optimizer, recorded, *args[2:]), kwargs
        return args, {**kwargs, "closure": recorded}

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Records the gradients of the optimizer's parameters as one step."""
        number = self._number_of(optimizer)
        wanted = next(self._expected, None) if self._expected is not None else None
        rows: list[list[Any]] = []
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for position, parameter in enumerate(parameters):
            parts = gradient_parts(parameter.grad)
            row = [self._parameter(parameter, number, position), digest_of(parts)]
            rows.append(row)
            if self._is_to_keep(Place(self.step_count, position), row, wanted):
                self._store(Place(self.step_count, position), parts)
        self.write("step", number=self.step_count, optimizer=number, name=type(optimizer).__name__, gradients=rows)
        self.step_count += 1
        if self.step_count == self._step_limit:
            raise Enough(0)

    def _is_to_keep(self, place: Place, row: list[Any], wanted: dict | None) -> bool:
        if self._keep is not None:
            return place == self._keep
        if wanted is None or place.position >= len(wanted["gradients"]):
            return False
        return wanted["gradients"][place.position] != row

    def _store(self, place: Place, parts: list[torch.Tensor]) -> None:
        self._keep, self._expected = Place(-1, -1), None  # one is enough
        with open(self._kept_path, "wb") as file:
            for part in parts:
                file.write(bytes_of(part))
        shapes = [{"dtype": str(part.dtype), "shape": list(part.shape)} for part in parts]
        self.write("kept", step=place.step, position=place.position, parts=shapes)

    def _number_of(self, optimizer: torch.optim.Optimizer) -> int:
        if optimizer not in self._optimizers:
            self._optimizers[optimizer] = self._optimizer_count
            self._optimizer_count += 1
        return self._optimizers[optimizer]

    def _parameter(self, parameter: torch.Tensor, optimizer: int, position: int) -> int:
        """The parameter's number in the record, which says at its first what its name is."""
        known = self._parameters.get(id(parameter))
        if known is not None and known[0]() is parameter:
            return known[1]
        number = self._parameter_count
        self._parameter_count += 1
        self._parameters[id(parameter)] = (weakref.ref(parameter), number)
        model, name = self._models.name_of(parameter) or (None, f"parameter {position} of optimizer {optimizer}")
        self.write("parameter", number=number, model=model, name=name, shape=list(parameter.shape),
                   dtype=str(parameter.dtype), bytes=parameter.numel() * parameter.element_size())  # fmt: skip
        return number


def gradient_parts(gradient: torch.Tensor | None) -> list[torch.Tensor]:
    """The dense tensors that a gradient consists of, on the CPU: of a sparse one its indices and values, of a sharded
    one this process's part; none where there is no gradient."""
    if gradient is None:
        return []
    gradient = _tensor.local_tensor(gradient.detach())
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce()
        return [gradient.indices().cpu().contiguous(), gradient.values().cpu().contiguous()]
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return [gradient.resolve_conj().resolve_neg().cpu().contiguous()]


def bytes_of(part: torch.Tensor) -> memoryview:
    return part.reshape(-1).view(torch.uint8).numpy().data


def digest_of(parts: list[torch.Tensor]) -> str | None:
    """Of dtype, shape and every byte; None for no gradient."""
    if not parts:
        return None
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(bytes_of(part))
    return digest.hexdigest()


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)


def read_steps(path: str | Path) -> Iterator[dict[str, Any]]:
    """The steps of a record, one at a time: a long run's do not fit in memory at once."""
    return (line for line in read_lines(path) if line["kind"] == "step")


def read_kind(path: str | Path, kind: str, choose: Callable[[dict], bool] = lambda line: True) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if line["kind"] == kind and choose(line)]
