"""Finds the layers of a model and marks their inputs, for the policies that treat these specially."""

from __future__ import annotations

import threading
import weakref

import torch

from memsys import _tensor

_ATTENTION_NODES = ("ScaledDotProduct", "FlashAttention", "EfficientAttention")


def repeated_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the model's lists of modules (at least two of one type): its layers."""
    layers = []
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential) and len(module) > 1:
            kinds = {type(child) for child in module}
            if len(kinds) == 1 and any(True for child in module for _ in child.parameters()):
                layers.extend(module)
    return layers


class LayerMarks:
    """Remembers, weakly, the storages that entered a layer in this forward."""

    def __init__(self, model: torch.nn.Module | None) -> None:
        self._inputs: dict[int, weakref.ref] = {}
        self._hooks = []
        self.layer_count = 0
        for layer in repeated_layers(model) if model is not None else ():
            self.layer_count += 1
            self._hooks.append(layer.register_forward_pre_hook(self.mark, with_kwargs=True))

    def is_layer_input(self, storage: torch.UntypedStorage) -> bool:
        found = self._inputs.get(_tensor.storage_key(storage))
        return found is not None and found() is storage

    def is_attention_output(self, node: object) -> bool:
        return node is not None and any(name in node.name() for name in _ATTENTION_NODES)

    def mark(self, _: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and _tensor.is_plain(value) and value.is_floating_point():
                storage = _tensor.storage_of(value)
                self._inputs[_tensor.storage_key(storage)] = weakref.ref(storage)

    def forget_dead(self) -> None:
        self._inputs = {key: ref for key, ref in list(self._inputs.items()) if ref() is not None}

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Stack(threading.local):
    """How deep in layers this thread's forward is, and the outermost of them."""

    depth = 0
    layer = -1


class LayerPlace(LayerMarks):
    """Also tells which layer is running."""

    def __init__(self, model: torch.nn.Module | None) -> None:
        super().__init__(None)
        self._stack = _Stack()
        inner: set[torch.nn.Module] = set()  # experts of a layer, say: no layers of their own
        for layer in repeated_layers(model) if model is not None else ():
            place = -1 if layer in inner else self.layer_count
            self._hooks.append(layer.register_forward_pre_hook(_Entering(self, place), with_kwargs=True))
            if place >= 0:
                self._hooks.append(layer.register_forward_hook(_Leaving(self, place), always_call=True))
                self.layer_count += 1
                inner.update(layer.modules())

    @property
    def layer(self) -> int:
        """The position of the layer that this thread is running; -1 outside of all."""
        return self._stack.layer

    def enter(self, layer: int) -> None:
        stack = self._stack
        stack.depth += 1
        if stack.depth == 1:
            stack.layer = layer

    def leave(self) -> None:
        stack = self._stack
        stack.depth = max(0, stack.depth - 1)
        if stack.depth == 0:
            stack.layer = -1


class _LayerHook:
    """Before or after a layer's forward. Copies of the module go on in the same session; one from a pickle does not."""

    def __init__(self, place: LayerPlace | None, layer: int) -> None:
        self._place = (lambda: None) if place is None else weakref.ref(place)
        self._layer = layer

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (None, self._layer)

    def __deepcopy__(self, _: object) -> _LayerHook:
        return self


class _Entering(_LayerHook):
    def __call__(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        place = self._place()
        if place is not None and not torch.compiler.is_compiling():
            place.mark(module, args, kwargs)
            if self._layer >= 0:
                place.enter(self._layer)


class _Leaving(_LayerHook):
    def __call__(self, *_: object) -> None:
        place = self._place()
        if place is not None and not torch.compiler.is_compiling():
            place.leave()
