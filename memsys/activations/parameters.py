"""Recognises parameters and buffers by their storage: a Linear saves `weight.t()`, which is no nn.Parameter.

Moving them would free nothing, since the module keeps them; FSDP2 gives them new storages, so the set is refreshed.
"""

from __future__ import annotations

import sys
import weakref
from itertools import chain

import torch

from memsys import _tensor


class ParameterFilter:
    """The storages of a model's parameters and buffers, as weak references."""

    def __init__(self) -> None:
        self._storages: dict[int, weakref.ref] = {}
        self._hooked: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def refresh(self, model: torch.nn.Module) -> None:
        """Reads the model anew; before each forward."""
        self._storages = {}
        self.add(model)
        if "torch.distributed.fsdp" in sys.modules:
            self._follow_fsdp(model)

    def add(self, module: torch.nn.Module) -> None:
        for tensor in chain(module.parameters(), module.buffers()):
            local = _tensor.local_tensor(tensor)
            if local.layout is torch.strided and not _tensor.is_wrapper(local):
                storage = _tensor.storage_of(local)
                self._storages[_tensor.storage_key(storage)] = weakref.ref(storage)

    def contains(self, storage: torch.UntypedStorage) -> bool:
        found = self._storages.get(_tensor.storage_key(storage))
        return found is not None and found() is storage

    def release(self) -> None:
        """Undoes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _follow_fsdp(self, model: torch.nn.Module) -> None:
        """After FSDP2's own pre-forward, which unshards, the module's parameters have other storages."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule) and module not in self._hooked:
                self._hooked.add(module)
                self._hooks.append(module.register_forward_pre_hook(lambda unsharded, _: self.add(unsharded)))
