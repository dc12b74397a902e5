"""What a file of weights can be packed from: a module, a state dict, or files; one tensor at a time.

No source is ever in memory as a whole unless it was before: a file's tensor lives as long as its turn lasts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from memsys import _tensor
from memsys._dtypes import NAMES
from memsys.errors import DtypeError, InputError, UnsupportedError
from memsys.weights.bundles import Bundle, Facts, Ffn, bundle_name, bundle_of, networks_of_model, networks_of_names
from memsys.weights.checked import Weights, open_weights
from memsys.weights.layout import check_name

_logger = logging.getLogger("memsys")

Origin = torch.nn.Module | Mapping[str, torch.Tensor] | str | os.PathLike


class Source(NamedTuple):
    """Tensors in the order in which they were found, and how to get each.

    `read` gives a contiguous CPU tensor of plain bits. `identity` changes when a file does; None: the source is in
    memory, and only its bytes tell whether it is the same as before.
    """

    tensors: dict[str, Facts]
    aliases: dict[str, str]
    networks: list[Ffn]
    read: Callable[[str], torch.Tensor]
    identity: list[object] | None


def source_of(origin: Origin) -> Source:
    """The source of a module, a state dict, the path of a .safetensors file or of a Hugging Face folder.

    Raises DtypeError, UnsupportedError or InputError, naming the tensor, for what no file can hold.
    """
    if isinstance(origin, torch.nn.Module):
        return _source_in_memory(origin.state_dict(keep_vars=True), networks_of_model(origin))
    if isinstance(origin, Mapping):
        return _source_in_memory(origin, [])
    if isinstance(origin, (str, os.PathLike)):
        return _source_in_files(open_weights(origin))
    raise DtypeError(f"weights: wanted a module, a dict of tensors, or a path, found {type(origin).__name__}; "
                     "pass model or model.state_dict()")  # fmt: skip


def bundles_of(source: Source) -> dict[str, Bundle]:
    """The bundles that the source's networks make, by name; one that does not fit stays dense and is logged."""
    bundles: dict[str, Bundle] = {}
    taken: set[frozenset[str]] = set()
    for network in source.networks:
        tensors = {part: source.aliases.get(name, name) for part, name in network.tensors.items()}
        if frozenset(tensors.values()) in taken:
            continue  # layers that share their weights
        try:
            bundles[bundle_name(network)] = bundle_of(network._replace(tensors=tensors), source.tensors)
            taken.add(frozenset(tensors.values()))
        except InputError as error:
            _logger.info("not bundled: %s", error)
    return bundles


def _source_in_memory(tensors: Mapping[str, object], networks: Iterable[Ffn]) -> Source:
    facts: dict[str, Facts] = {}
    aliases: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name, tensor in tensors.items():
        check_name(name)
        kind = _facts_of(name, tensor)
        key = memory_of(tensor)
        first = name if key is None else seen.setdefault(key, name)
        if first == name:
            facts[name] = kind
        else:
            aliases[name] = first
    return Source(facts, aliases, list(networks), lambda name: plain_bits(tensors[name]), None)


def _source_in_files(weights: Weights) -> Source:
    facts = {}
    for name in weights.names():
        entry = weights.entries[name]
        facts[check_name(name)] = Facts(NAMES[entry.dtype], entry.shape)
    networks = networks_of_names(facts, weights.config)
    if weights.bundles:  # packed before, when it was known what they are
        networks = [
            Ffn(name.rpartition(".")[0], dict(bundle.tensors), dict(bundle.is_transposed))
            for name, bundle in weights.bundles.items()
        ]
    return Source(facts, dict(weights.aliases), networks, weights.read, weights.identity())


def _facts_of(name: str, tensor: object) -> Facts:
    if not isinstance(tensor, torch.Tensor):
        raise DtypeError(f"{name!r}: wanted a tensor, found {type(tensor).__name__}; "
                         "leave it out of the state dict")  # fmt: skip
    if tensor.is_meta:
        raise UnsupportedError(f"tensor {name!r}: wanted bytes, found a meta tensor, which has none; "
                               "load the model, or pack its files")  # fmt: skip
    if not _tensor.is_plain(tensor):
        kind = type(tensor).__name__ if tensor.layout is torch.strided else f"{tensor.layout}"
        raise UnsupportedError(f"tensor {name!r}: wanted a plain dense tensor, found {kind}; "
                               "convert it to one, or pack the files it was loaded from")  # fmt: skip
    if tensor.dtype not in NAMES:
        raise DtypeError(f"tensor {name!r}: wanted a dtype that safetensors knows, found {tensor.dtype}; "
                         "convert it, for example with torch.view_as_real")  # fmt: skip
    if tensor.numel() > 0 and not _tensor.is_backed(tensor):
        raise UnsupportedError(f"tensor {name!r}: wanted its bytes, found an emptied storage; "
                               "gather the sharded parameters first")  # fmt: skip
    return Facts(NAMES[tensor.dtype], tuple(tensor.shape))


def memory_of(tensor: torch.Tensor) -> object:
    """The same for two tensors that are one memory read one way; None for one of no bytes, or of no plain memory."""
    if tensor.numel() == 0 or not _tensor.is_plain(tensor):
        return None
    return _tensor.storage_key(_tensor.storage_of(tensor)), tensor.device, _tensor.layout_of(tensor, 0)


def plain_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, with nothing left to be resolved when it is read."""
    return tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
