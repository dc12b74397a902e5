"""`memsys env`: facts about this machine, one a line, to paste into a bug report. Measures nothing, changes nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

from memsys.budget import cgroup_limit_bytes, default_spill_dir, format_bytes
from memsys.cli import facts, native
from memsys.cli.console import Printer


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spill-dir", metavar="FOLDER", help="the folder to look at (TMPDIR, or /var/tmp)")


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    found = collect(arguments.spill_dir or default_spill_dir())
    printer.line("Copy the lines below into your bug report.")
    printer.line()
    for key, value in found.items():
        printer.line(f"- {key}: {value}")
    printer.result(found)
    return 0


def collect(spill_dir: str) -> dict[str, str]:
    """Every fact, in the order of the report."""
    cuda, (has_uring, uring_reason) = native.cuda_status(), native.uring_status()
    limit, locked = cgroup_limit_bytes(), facts.locked_memory_limit()
    return {
        "memsys": _memsys_version(),
        "torch": facts.torch_version(),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": facts.cpu_name(),
        "cores": str(facts.usable_cores()),
        "RAM": format_bytes(facts.memory_bytes()),
        "cgroup memory limit": "none" if limit is None else format_bytes(limit),
        "RLIMIT_MEMLOCK": "unlimited" if locked is None else format_bytes(locked),
        "CUDA built": native.cuda_version_text(cuda["runtime_version"]) if cuda["built"] else "no",
        "CUDA driver": native.cuda_version_text(cuda["driver_version"]),
        "CUDA devices": f"{cuda['device_count']} ({cuda['message']})" if cuda["message"] else str(cuda["device_count"]),
        "io_uring": "yes" if has_uring else f"no ({uring_reason})",
        "spill folder": _spill_text(spill_dir),
        "CRC32C": native.checksum_name(),
        "malloc": facts.malloc_name(),
    }


def _memsys_version() -> str:
    try:
        version = importlib.metadata.version("memsys")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed (source folder)"
    module, reason = native.native_module()
    return version if module is not None else f"{version}, memsys._C does not load: {reason}"


def _spill_text(path: str) -> str:
    folder = facts.inspect_spill_folder(path)
    if not folder.exists:
        return f"{path} (missing)"
    direct = f"O_DIRECT yes, alignment {folder.direct_alignment}" if folder.has_direct else "O_DIRECT no"
    return f"{path} ({folder.filesystem}, {format_bytes(folder.free_bytes)} free, {direct})"
