"""memsys.unpack_weights: the tensors of a packed file, without loss, in an ordinary file or in the caller's tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

import torch

from memsys import _tensor
from memsys._dtypes import NAMES
from memsys.errors import DtypeError, InputError, UnsupportedError
from memsys.weights.bundles import Facts
from memsys.weights.checked import Weights, open_weights
from memsys.weights.layout import plain_header
from memsys.weights.output import Output
from memsys.weights.sources import memory_of

Target = str | os.PathLike | torch.nn.Module | MutableMapping[str, torch.Tensor]


def unpack_weights(path: str | os.PathLike, target: Target) -> None:
    """Writes the tensors of `path` to a plain .safetensors file, or fills a module or a dict; each byte is verified.

    `path`: a packed file, or whatever else pack_weights takes from files. Bundles and fillers are left out. A file at
    `target` stays whole until the new one takes its place; second names of tied tensors are in its metadata, as
    safetensors.torch.save_model has them. A module must have the same names, shapes and dtypes; a dict may lack some,
    which it then gets. Everything is checked before the first tensor is filled, but the bytes, which are checked
    tensor by tensor: at a CorruptionError the tensors before the bad one are filled, the bad one is not.

    Raises CorruptionError naming file, tensor and offset; SpillError for what the system refuses; InputError,
    DtypeError or UnsupportedError, naming the tensor, for a target that does not fit.
    """
    # Each byte is read once, so that "first" would do; "always" says what is meant.
    weights = open_weights(path, verify="always")
    if isinstance(target, torch.nn.Module):
        _fill(weights, target.state_dict(keep_vars=True), None)
    elif isinstance(target, MutableMapping):
        _fill(weights, target, target)
    elif isinstance(target, (str, os.PathLike)):
        _write(weights, target)
    else:
        raise DtypeError(f"a target: wanted a path, a module or a dict, found {type(target).__name__}; "
                         "pass one of these")  # fmt: skip


def _write(weights: Weights, path: str | os.PathLike) -> None:
    facts = {name: Facts(NAMES[weights.entries[name].dtype], weights.entries[name].shape) for name in weights.names()}
    # Large elements first, as in safetensors' own files, keeps every tensor aligned to its element.
    names = sorted(facts, key=lambda name: (-weights.entries[name].dtype.itemsize, name))
    header, offsets = plain_header([(name, facts[name]) for name in names], {**weights.aliases, "format": "pt"})
    output = Output(path)
    try:
        output.reserve(len(header) + sum(weights.entries[name].bytes for name in names))
        for name, offset in zip(names, offsets, strict=True):
            output.write(weights.read(name), offset)
        output.write(header, 0)
        output.finish()
    except BaseException:
        output.abandon()
        raise


def _fill(weights: Weights, tensors: Mapping[str, object], added: MutableMapping[str, torch.Tensor] | None) -> None:
    """Fills `tensors`; what they lack goes into `added`, or is refused without it."""
    names = {name: name for name in weights.names()} | weights.aliases
    filled = {memory_of(tensors[name]) for name in names if isinstance(tensors.get(name), torch.Tensor)} - {None}
    for name, tensor in tensors.items():
        # A tied tensor is filled under its other name.
        if name not in names and not (isinstance(tensor, torch.Tensor) and memory_of(tensor) in filled):
            raise InputError(f"{weights.path}: wanted tensor {name!r}, which the target has, found it nowhere; "
                             "unpack into the model that was packed, or leave it out")  # fmt: skip
    for name in names:
        if name in tensors:
            _check_fit(weights, name, tensors[name])
        elif added is None:
            raise InputError(f"the target: wanted tensor {name!r} of {weights.path}, found it nowhere; "
                             "unpack into the model that was packed, or into a dict")  # fmt: skip
    fresh: dict[str, torch.Tensor] = {}
    for name, first in names.items():
        if name in tensors:
            with torch.no_grad():
                tensors[name].copy_(weights.read(first))
        elif first in tensors:
            fresh[name] = tensors[first]
        else:
            fresh[name] = fresh[first] if first in fresh else weights.read(first)
    if added is not None:
        added.update(fresh)


def _check_fit(weights: Weights, name: str, tensor: object) -> None:
    entry = weights.entry(name)
    if not isinstance(tensor, torch.Tensor):
        raise DtypeError(f"target {name!r}: wanted a tensor, found {type(tensor).__name__}; leave it out")
    is_empty = tensor.is_meta or (tensor.numel() > 0 and _tensor.is_plain(tensor) and not _tensor.is_backed(tensor))
    if is_empty or not _tensor.is_plain(tensor):
        kind = "one without" if is_empty else f"{type(tensor).__name__}, {tensor.layout}"
        raise UnsupportedError(f"target {name!r}: wanted a plain dense tensor with memory, found {kind}; "
                               "use model.to_empty(device='cpu') first, or unpack into a dict")  # fmt: skip
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        error = InputError if tensor.dtype == entry.dtype else DtypeError
        raise error(f"target {name!r}: wanted {entry.dtype} of shape {list(entry.shape)}, found {tensor.dtype} of "
                    f"shape {list(tensor.shape)}; unpack into the model that was packed")  # fmt: skip
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise InputError(f"target {name!r}: wanted memory for each element, found one repeated; use .contiguous()")
