"""Facts about this machine that `memsys env` prints and `memsys doctor` judges."""

from __future__ import annotations

import errno
import os
import platform
import resource
from dataclasses import dataclass, fields
from pathlib import Path

from memsys.budget import filesystem_of, is_memory_filesystem
from memsys.cli.native import native_module


@dataclass(frozen=True)
class SpillFolder:
    """What a folder for spill files can do."""

    path: str
    exists: bool
    writable: bool
    is_symlink: bool
    in_memory: bool
    has_tmpfile: bool
    has_direct: bool
    direct_alignment: int
    free_bytes: int
    filesystem: str
    message: str


def inspect_spill_folder(path: str) -> SpillFolder:
    """Tries `path` with the compiled module, or, where that does not load, with the system's own calls."""
    native, _ = native_module()
    if native is not None:
        found = dict(native.inspect_spill_folder(path))
    else:
        found = _inspect_without_native(path)
    found |= {"path": path, "in_memory": is_memory_filesystem(path), "filesystem": filesystem_of(path)}
    return SpillFolder(**{field.name: found[field.name] for field in fields(SpillFolder)})


def _inspect_without_native(path: str) -> dict[str, object]:
    exists = os.path.isdir(path)
    status = os.statvfs(path) if exists else None
    tmpfile = _open_reason(path, os.O_TMPFILE)
    return {
        "exists": exists,
        "writable": os.access(path, os.W_OK | os.X_OK),
        "is_symlink": os.path.islink(path),
        "has_tmpfile": tmpfile == "",
        "has_direct": _open_reason(path, os.O_TMPFILE | os.O_DIRECT) == "",
        "direct_alignment": status.f_bsize if status else 0,
        "free_bytes": status.f_bavail * status.f_frsize if status else 0,
        "message": tmpfile,
    }


def _open_reason(path: str, flags: int) -> str:
    """Why a nameless file cannot be opened in `path` with `flags`; empty if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def locked_memory_limit() -> int | None:
    """RLIMIT_MEMLOCK in bytes; None: unlimited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def malloc_name() -> str:
    """The C library, and what in the environment changes its heap."""
    name, version = platform.libc_ver()
    marks = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    changed = [f"{key}={os.environ[key]}" for key in sorted(os.environ) if key.startswith(marks)]
    return " ".join(filter(None, [name or "unknown C library", version, *changed]))


def torch_version() -> str:
    try:
        import torch
    except ImportError as error:
        return f"missing ({error})"
    return torch.__version__
