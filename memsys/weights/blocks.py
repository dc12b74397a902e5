"""Finds what is streamed: the blocks of a model in the order of its walk, and in each the weights that a file holds.

A block is visited twice a training step, everything else all the time: so only blocks are worth a window.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from memsys import _tensor
from memsys.errors import InputError

logger = logging.getLogger("memsys")

# What adapters put around a module's name; the file knows the name without.
_WRAPPINGS = (re.compile(r"^base_model\.model\."), re.compile(r"(?<=\.)base_layer\."), re.compile(r"^module\."))


@dataclass
class StreamedWeight:
    """One parameter of a block whose bytes lie in the file."""

    parameter: torch.nn.Parameter
    name: str  # in the file
    owners: list[tuple[torch.nn.Module, str]] = field(default_factory=list)  # modules that hold it, and as what


@dataclass
class Block:
    """One repeated module: what a visit needs, all of it."""

    name: str
    module: torch.nn.Module
    weights: list[StreamedWeight]


def file_name(name: str, known: Collection[str]) -> str | None:
    """The name under which the file holds a parameter of the model, or None."""
    if name in known:
        return name
    for wrapping in _WRAPPINGS:
        name = wrapping.sub("", name)
    return name if name in known else None


def named_blocks(model: torch.nn.Module, blocks: str | Sequence[str] | None) -> list[tuple[str, torch.nn.Module]]:
    """The blocks by name: the members of lists of one type of module, outermost first; or those that `blocks` names
    (modules, or lists of them).

    Raises InputError where there are none, or a name is unknown.
    """
    if blocks is not None:
        return _chosen(model, [blocks] if isinstance(blocks, str) else list(blocks))
    lists = list(_lists(model))
    most = max((_matrix_bytes(module) for _, module in lists), default=0)
    # Lists of little, such as heads, are no stack of blocks.
    found = [one for name, module in lists if _matrix_bytes(module) >= most / 10 for one in _members(name, module)]
    if not found:
        raise InputError(f"stream: wanted a repeated list of modules, found none in {type(model).__name__}; name the "
                         "blocks with blocks=['encoder.first', ...]")  # fmt: skip
    return found


def _lists(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The outermost lists of modules with matrices in several of them; a Sequential only if its members have parts."""
    inside: set[torch.nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not _is_list(module):
            continue
        if sum(_matrix_bytes(child) > 0 for child in module.children()) > 1:
            inside.update(part for child in module.children() for part in child.modules())
            yield name, module


def _is_list(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.Sequential):
        return all(any(True for _ in child.children()) for child in module.children())
    return isinstance(module, torch.nn.ModuleList)


def _members(name: str, module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    return [(f"{name}.{child}" if name else child, block) for child, block in module.named_children()]


def _matrix_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.dim() > 1)


def _chosen(model: torch.nn.Module, names: list[str]) -> list[tuple[str, torch.nn.Module]]:
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise InputError(f"stream: blocks: wanted names of modules, found {unknown[0] if unknown else names!r}; one of "
                         f"{[name for name in modules if name][:8]} for instance")  # fmt: skip
    found: list[tuple[str, torch.nn.Module]] = []
    for name in names:
        found += _members(name, modules[name]) if _is_list(modules[name]) else [(name, modules[name])]
    for index, (name, module) in enumerate(found):
        for other, outer in found[:index] + found[index + 1 :]:
            if module in set(outer.modules()):
                raise InputError(f"stream: blocks: {name} lies within {other}; name one of them")
    return found


def find_blocks(model: torch.nn.Module, known: Collection[str], blocks: str | Sequence[str] | None) -> list[Block]:
    """The blocks with the weights to stream: matrices that the file holds and that belong to one block alone."""
    chosen = named_blocks(model, blocks)
    holders = _holders(model)
    result, lacking = [], []
    uses = Counter(part for _, module in chosen for part in set(module.modules()))
    for block_name, module in chosen:
        inside = set(module.modules())
        weights: dict[int, StreamedWeight] = {}
        for name, parameter in module.named_parameters(prefix=block_name):
            held = file_name(name, known)
            owners = holders[id(parameter)]
            is_shared = any(owner not in inside or uses[owner] > 1 for owner, _ in owners)
            if held is None and parameter.dim() > 1 and not parameter.requires_grad:
                lacking.append(name)
            if held is None or parameter.dim() < 2 or is_shared:
                continue
            if _tensor.is_plain(parameter) and parameter.numel() > 0:
                weights[id(parameter)] = StreamedWeight(parameter, held, owners)
        if weights:
            result.append(Block(block_name, module, list(weights.values())))
    if not result:
        names = [f"{chosen[0][0]}.{name}" for name, _ in chosen[0][1].named_parameters()]
        raise InputError(f"stream: the file holds no matrix of any block; wanted names such as {names[:3]}, found "
                         f"{sorted(known)[:3]}; pack this model with memsys.pack_weights")  # fmt: skip
    if lacking:
        logger.warning("memsys.stream: the file does not hold %d frozen matrices of the blocks, %s among them: they "
                       "stay in memory", len(lacking), lacking[0])  # fmt: skip
    return result


def _holders(model: torch.nn.Module) -> dict[int, list[tuple[torch.nn.Module, str]]]:
    holders: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in own_parameters(module):
            holders.setdefault(id(parameter), []).append((module, name))
    return holders


def own_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters that the module itself holds, also those it shares with others."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
