"""What of a module decides how its forward runs, but for the values of its parameters: modules that agree in it share
one verdict, as the layers of a stack do."""

from __future__ import annotations

import types

import torch

# Of a layer's place in its stack; what hangs on it shows in other attributes.
_PLACES = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index"})
_SIMPLE = (bool, int, float, str, type(None), torch.dtype, tuple, types.FunctionType, types.BuiltinFunctionType)


def fingerprint(module: torch.nn.Module) -> tuple[object, ...]:
    """Hashable, and equal for modules of the same classes, settings (training or not among them) and shapes."""
    parts = tuple((name, type(part), _settings(part)) for name, part in module.named_modules())
    tensors = tuple(
        (name, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    )
    return type(module), parts, tensors


def modes(module: torch.nn.Module) -> tuple[bool, ...]:
    """Training or not, of the module and of all in it."""
    return tuple(part.training for part in module.modules())


def _settings(part: torch.nn.Module) -> tuple[object, ...]:
    found = [(name, value) for name, value in part.__dict__.items() if name not in _PLACES and _is_simple(value)]
    config = part.__dict__.get("config")
    return (*found, getattr(config, "_attn_implementation", None))


def _is_simple(value: object) -> bool:
    if type(value) is tuple:
        return all(_is_simple(item) for item in value)
    return isinstance(value, _SIMPLE)
