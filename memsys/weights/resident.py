"""Puts the weights that stay in memory in their places, and gives a model that was made without memory (on the meta
device) whatever else it needs: its buffers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

import torch

from memsys import _tensor
from memsys.errors import InputError, MemsysError
from memsys.weights.blocks import file_name

Read = Callable[[str], torch.Tensor]


def fill_resident(model: torch.nn.Module, streamed: Collection[int], known: Collection[str], read: Read) -> int:
    """Reads every parameter and persistent buffer that the file holds and that is not streamed (given by `id`);
    returns their bytes.

    Raises InputError, naming it, for what has no bytes and can't be given any, and for what the file has otherwise.
    """
    done: set[int] = set(streamed)
    total = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        held = file_name(name, known)
        if id(parameter) in done or held is None:
            continue
        done.add(id(parameter))
        total += _fill(parameter, name, read(held))
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" and id(parameter) not in done:
            raise InputError(f"stream: parameter {name} is on the meta device, found none of that name in the file; "
                             "give it a value first, or pack a model that has it")  # fmt: skip
    return total + _fill_buffers(model, known, read)


def _fill(target: torch.Tensor, name: str, value: torch.Tensor) -> int:
    check_like(target, name, value.shape, value.dtype)
    if target.device.type == "meta":
        # The same object, since others may hold it too (tied weights, an optimizer).
        _tensor.become(target, value)
    else:
        with torch.no_grad():
            target.copy_(value)
    return target.numel() * target.element_size()


def check_like(target: torch.Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises InputError unless the file's tensor fits; a tensor on meta takes the file's dtype."""
    is_typed = target.device.type == "meta" or target.dtype == dtype
    if tuple(target.shape) != tuple(shape) or not is_typed:
        raise InputError(f"stream: {name} is {target.dtype} {list(target.shape)} in the model, found {dtype} "
                         f"{list(shape)} in the file; pack this model, or make it as the file's was")  # fmt: skip


def _fill_buffers(model: torch.nn.Module, known: Collection[str], read: Read) -> int:
    total = 0
    for prefix, module in model.named_modules():
        missing = []
        for name, buffer in module.named_buffers(recurse=False):
            held = file_name(f"{prefix}.{name}" if prefix else name, known)
            if held is not None and name not in module._non_persistent_buffers_set:
                value = read(held)
                check_like(buffer, held, value.shape, value.dtype)
                module._buffers[name] = value
                total += value.numel() * value.element_size()
            elif buffer.device.type == "meta":
                missing.append(name)
        if missing:
            _rebuild(module, prefix, missing)
    return total


def _rebuild(module: torch.nn.Module, prefix: str, names: list[str]) -> None:
    """Buffers that no file holds are what the module's constructor computes: from its `config`, where it has one."""
    wanted = f"stream: buffer {prefix}.{names[0]} is on the meta device and in no file"
    config = getattr(module, "config", None)
    if config is None:
        raise InputError(f"{wanted}; give it a value first: the module has no config to make it again from")
    taken = set(inspect.signature(type(module).__init__).parameters) - {"self", "config", "device"}
    if taken:
        raise InputError(f"{wanted}; give it a value first: {type(module).__name__} is made from more than a config "
                         f"({', '.join(sorted(taken))})")  # fmt: skip
    try:
        with torch.random.fork_rng(devices=()), torch.device("cpu"):
            fresh = dict(type(module)(config).named_buffers(recurse=False))
    except MemsysError:
        raise
    except Exception as error:
        raise InputError(f"{wanted}; making {type(module).__name__}(config) again failed: {error}; give it a value "
                         "first") from error  # fmt: skip
    for name in names:
        if name not in fresh or fresh[name].shape != module._buffers[name].shape:
            raise InputError(f"{wanted}; {type(module).__name__}(config) makes another; give it a value first")
        module._buffers[name] = fresh[name]
