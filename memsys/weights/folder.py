"""Which files hold a checkpoint: one .safetensors file, or a folder as Hugging Face lays it out.

An index file is untrusted: the names in it may not lead out of its folder.
"""

from __future__ import annotations

import errno
import json
import os
from typing import NamedTuple

from memsys.errors import CorruptionError, InputError, SpillError, UnsupportedError

WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_JSON_BYTES = 100_000_000


class Checkpoint(NamedTuple):
    """Paths of the files, which tensor the index expects in which of them (None without an index), and config.json."""

    path: str
    files: tuple[str, ...]
    index: dict[str, str] | None
    config: dict[str, object]


def find_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """The files of `path`: a .safetensors file, a folder with model.safetensors or its index, or that index.

    Raises SpillError for what is missing, UnsupportedError for pickles, CorruptionError for a bad index.
    """
    path = os.fspath(path)
    if not isinstance(path, str):
        raise InputError(f"a path: wanted text, found {type(path).__name__}; use os.fsdecode")
    if path.lower().endswith(_PICKLES):
        raise _pickled(path)
    if os.path.isdir(path):
        return _find_in_folder(path)
    if path.endswith(".json"):
        return _find_by_index(os.path.dirname(path) or ".", os.path.basename(path), {})
    if not os.path.exists(path):
        raise SpillError(errno.ENOENT, f"{path}: there is no such file or folder; name a .safetensors file, or a "
                                       f"folder with {WHOLE_FILE} or {INDEX_FILE}")  # fmt: skip
    return Checkpoint(path, (os.path.realpath(path),), None, {})


def _find_in_folder(path: str) -> Checkpoint:
    names = sorted(os.listdir(path))
    config = read_json(os.path.join(path, CONFIG_FILE)) if CONFIG_FILE in names else {}
    if WHOLE_FILE in names:
        return Checkpoint(path, (confined(path, WHOLE_FILE, ""),), None, config)
    if INDEX_FILE in names:
        return _find_by_index(path, INDEX_FILE, config)
    pickled = [name for name in names if name.lower().endswith(_PICKLES)]
    if pickled:
        raise _pickled(os.path.join(path, pickled[0]))
    raise SpillError(errno.ENOENT, f"{path}: wanted {WHOLE_FILE} or {INDEX_FILE}, found neither; "
                                   "name the .safetensors file itself")  # fmt: skip


def _find_by_index(folder: str, index_name: str, config: dict[str, object]) -> Checkpoint:
    index_path = os.path.join(folder, index_name)
    index = read_json(index_path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise CorruptionError(f"{index_path}: wanted a weight_map from names of tensors to names of files, found "
                              "something else; download the index again")  # fmt: skip
    first_tensor: dict[str, str] = {}
    for tensor, name in index.items():
        first_tensor.setdefault(name, tensor)
    files = {name: confined(folder, name, tensor) for name, tensor in sorted(first_tensor.items())}
    return Checkpoint(folder, tuple(files.values()), {tensor: files[name] for tensor, name in index.items()}, config)


def confined(folder: str, name: str, tensor: str) -> str:
    """The real path of a file of the folder. A link may lead elsewhere in the folder, or, in a download cache of
    Hugging Face (blobs beside snapshots), to its blobs; anything else is refused."""
    what = os.path.join(folder, INDEX_FILE if tensor else "") + (f": tensor {tensor!r}" if tensor else "")
    if not name.endswith(".safetensors") or any(mark in name for mark in ("/", "\\", "\0")):
        raise CorruptionError(f"{what}: wanted the name of a .safetensors file of the same folder, found {name!r}; "
                              "download the index again")  # fmt: skip
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        raise SpillError(errno.ENOENT, f"{path}: the file is missing" + (f", and with it tensor {tensor!r}; "
                         if tensor else "; ") + "download it again")  # fmt: skip
    home, real = os.path.realpath(folder), os.path.realpath(path)
    homes = [home]
    if os.path.basename(os.path.dirname(home)) == "snapshots":
        homes.append(os.path.join(os.path.dirname(os.path.dirname(home)), "blobs"))
    if os.path.dirname(real) not in homes and not real.startswith(home + os.sep):
        raise CorruptionError(f"{what}: {name!r} leads out of its folder, to {real}; copy the file into the folder")
    return real


def read_json(path: str) -> dict[str, object]:
    """The object in a JSON file. Raises SpillError, or CorruptionError for anything else than one object."""
    try:
        with open(path, "rb") as file:
            # Asked for no more than there is: reading takes memory for all that is asked for.
            text = file.read(min(os.fstat(file.fileno()).st_size, _MAX_JSON_BYTES) + 1)
    except OSError as error:
        raise SpillError(error.errno, f"{path}: {error.strerror}; check the file") from error
    if len(text) > _MAX_JSON_BYTES:
        raise CorruptionError(f"{path}: wanted at most {_MAX_JSON_BYTES} bytes, found more; download it again")
    return parse_object(text, path)


def parse_object(text: str | bytes, what: str) -> dict[str, object]:
    """One JSON object, in which no key may appear twice. Raises CorruptionError, whose message begins with `what`."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{what}: wanted a JSON object, found {error}; write or download it again") from None
    if not isinstance(found, dict):
        raise CorruptionError(f"{what}: wanted a JSON object, found {type(found).__name__}; "
                              "write or download it again")  # fmt: skip
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a second {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _pickled(path: str) -> UnsupportedError:
    return UnsupportedError(f"{path}: memsys reads no pickles, which run code when they are loaded; save the model as "
                            "safetensors first (save_pretrained does, or safetensors.torch.save_file)")  # fmt: skip
