"""Which models a script trains: the modules that it calls itself, not from within another one, and that have something
to train. Seen by a patch of torch.nn.Module's call, so that the script need not be changed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from memsys import _tensor


class _Depth(threading.local):
    count = 0


class Models:
    """The models in the order of their first call. `on_new` is told of each before that call runs."""

    def __init__(self, on_new: Callable[[torch.nn.Module], None] = lambda model: None) -> None:
        self._on_new = on_new
        self._depth = _Depth()
        self._found: list[weakref.ref] = []
        self._known: weakref.WeakSet = weakref.WeakSet()
        self.class_names: list[str] = []

    def watch(self) -> None:
        """From now on, for the rest of the process."""
        inner, depth = torch.nn.Module.__call__, self._depth

        def call(module: torch.nn.Module, *args: object, **kwargs: object) -> object:
            if torch.compiler.is_compiling():
                return inner(module, *args, **kwargs)
            if depth.count == 0:
                self._meet(module)
            depth.count += 1
            try:
                return inner(module, *args, **kwargs)
            finally:
                depth.count -= 1

        torch.nn.Module.__call__ = call

    def _meet(self, module: torch.nn.Module) -> None:
        # What is called in backward is computed again for a checkpoint: a part of a model that is known.
        if not torch.is_grad_enabled() or _tensor.in_backward() or module in self._known:
            return
        if any(parameter.requires_grad for parameter in module.parameters()):
            self._known.add(module)
            self._found.append(weakref.ref(module))
            self.class_names.append(type(module).__name__)
            self._on_new(module)

    def name_of(self, parameter: torch.Tensor) -> tuple[int, str] | None:
        """(number of the first model that has it, its name there)."""
        for number, reference in enumerate(self._found):
            model = reference()
            for name, value in model.named_parameters() if model is not None else ():
                if value is parameter:
                    return number, name
        return None
