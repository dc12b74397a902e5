"""Weights in files, open for reading: packed or plain, one file or many, every tensor checked before it is returned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from memsys import _C, _tensor
from memsys._dtypes import DTYPES
from memsys.errors import CorruptionError, InputError
from memsys.runtimes import runtime_for
from memsys.weights.bundles import Bundle
from memsys.weights.folder import Checkpoint, find_checkpoint
from memsys.weights.layout import PackedLayout, is_filler, parse_layout

VERIFY = ("first", "always", "never")


class Entry(NamedTuple):
    """Where a tensor lies: `file` is a _C.WeightFile, `offset` counts from its start, and each `unit_bytes` bytes have
    a checksum (0: none has, the file is not a packed one)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    bytes: int
    file: object
    unit_bytes: int


class Weights:
    """The tensors of a checkpoint by name. `entries` has bundles too, but no fillers and no aliases; `files` are the
    _C.WeightFile objects, `paths` their names in the same order, `config` is the folder's config.json."""

    def __init__(self, checkpoint: Checkpoint, verify: str) -> None:
        self.path = checkpoint.path
        self.config = checkpoint.config
        self.paths = checkpoint.files
        self.files: list[object] = []
        self.entries: dict[str, Entry] = {}
        self.bundles: dict[str, Bundle] = {}
        self.aliases: dict[str, str] = {}
        self._verify = verify
        self._homes: dict[str, str] = {}
        for path in checkpoint.files:
            self._open(path)
        self._check_index(checkpoint)

    def names(self) -> Iterator[str]:
        """The model's own tensors, in the order of the files; bundles repeat some of them."""
        return (name for name in self.entries if name not in self.bundles)

    def entry(self, name: str) -> Entry:
        """Where the tensor lies, also by its second name. Raises InputError for a name that is not there."""
        found = self.entries.get(self.aliases.get(name, name))
        if found is None:
            raise InputError(f"{self.path}: wanted tensor {name!r}, found {len(self.entries)} others, such as "
                             f"{', '.join(list(self.entries)[:5])}; name one of them")  # fmt: skip
        return found

    def read(self, name: str) -> torch.Tensor:
        """A tensor of its own memory with the bytes of the file, checked.

        Raises CorruptionError, naming file, tensor and offset, where they are not the bytes that were written.
        """
        entry = self.entry(name)
        target = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.bytes > 0:
            entry.file.read(entry.offset, entry.bytes, _tensor.pointer_of(target))
        return target

    def identity(self) -> list[list[object]]:
        """What changes when a file does: path, inode, bytes and times."""
        found = []
        for path in self.paths:
            state = os.stat(path)
            found.append([path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns])
        return found

    def _open(self, path: str) -> None:
        runtime, _ = runtime_for(torch.device("cpu"))
        file = _C.WeightFile(runtime, path, verify=getattr(_C.Verify, self._verify))
        tensors = file.tensors
        layout = parse_layout(path, tensors, file.metadata)
        for tensor in tensors:
            name = tensor["name"]
            if layout is not None and is_filler(name):
                continue
            if name in self.entries:
                raise CorruptionError(f"{path}: tensor {name!r} at byte {tensor['offset']}: wanted it in one file, "
                                      f"found it in {self._homes[name]} too; download both again")  # fmt: skip
            unit_bytes = 0 if layout is None else layout.unit_bytes[name]
            self.entries[name] = Entry(DTYPES[tensor["dtype"]], tuple(tensor["shape"]), tensor["offset"],
                                       tensor["bytes"], file, unit_bytes)  # fmt: skip
            self._homes[name] = path
        self.files.append(file)
        if layout is not None:
            self._take(layout)

    def _take(self, layout: PackedLayout) -> None:
        self.bundles.update(layout.bundles)
        self.aliases.update(layout.aliases)
        for name, values in layout.checksums.items():
            entry = self.entries[name]
            if values and self._verify != "never":
                entry.file.set_checksums(entry.offset, entry.bytes, entry.unit_bytes, values)

    def _check_index(self, checkpoint: Checkpoint) -> None:
        for name, path in (checkpoint.index or {}).items():
            if self._homes.get(self.aliases.get(name, name)) != path:
                raise CorruptionError(f"{path}: wanted tensor {name!r}, which the index names, found it "
                                      f"{'in ' + self._homes[name] if name in self._homes else 'nowhere'}; "
                                      "download the folder again")  # fmt: skip
        for alias in self.aliases:
            if alias in self.entries:
                raise CorruptionError(f"{self.path}: tensor {alias!r}: wanted one of that name, found a second name "
                                      "of another; pack the files again")  # fmt: skip


def open_weights(path: str | os.PathLike, verify: str = "first") -> Weights:
    """Opens a packed file, a plain .safetensors file, or a Hugging Face folder (whole or in shards).

    `verify`: "first" checks each checksum when its bytes are first read, "always" at every read, "never" not at all;
    headers are checked always. Raises SpillError for what can't be read, CorruptionError for what is not right.
    """
    if verify not in VERIFY:
        raise InputError(f"verify: wanted one of {VERIFY}, found {verify!r}; use 'first'")
    return Weights(find_checkpoint(path), verify)
