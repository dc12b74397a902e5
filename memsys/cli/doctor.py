"""`memsys doctor`: each check with its status and a remedy, then the measured rates of the links."""

from __future__ import annotations

import argparse
import mmap
from dataclasses import asdict, dataclass
from typing import Any

from memsys.budget import available_host_bytes, default_spill_dir, format_bytes
from memsys.cli import facts, native
from memsys.cli.console import Printer
from memsys.report import links

_PINNED_BYTES = 64 << 20
# Under this, a long sequence of a mid-size model does not fit.
_LITTLE_DISK_BYTES = 10 << 30
# What the static CUDA runtime of each major version needs, per NVIDIA's compatibility table.
_LEAST_DRIVER = {12: "525.60", 13: "580.65"}


@dataclass(frozen=True)
class Check:
    """`status`: "ok", "warn" (it works, but less well) or "fail"; a remedy for all but "ok"."""

    name: str
    status: str
    found: str
    remedy: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spill-dir", metavar="FOLDER", help="the folder to check (TMPDIR, or /var/tmp)")


def run(arguments: argparse.Namespace, printer: Printer) -> int:
    folder = facts.inspect_spill_folder(arguments.spill_dir or default_spill_dir())
    cuda = native.cuda_status()
    checks = [check_core(), check_torch(), check_memory(), check_uring(), *check_folder(folder), *check_gpu(cuda)]
    rates = measure_rates(folder, cuda["device_count"] > 0)
    rows = [[check.name, check.status, check.found, check.remedy] for check in checks]
    printer.table("memsys doctor", ["check", "status", "found", "remedy"], rows)
    printer.line()
    rate_rows = [[name, "not measured" if rate is None else f"{rate / 1e9:.2f} GB/s"] for name, rate in rates.items()]
    printer.table("measured links", ["link", "rate"], rate_rows)
    failed = any(check.status == "fail" for check in checks)
    printer.result({"ok": not failed, "checks": [asdict(check) for check in checks], "rates_bytes_per_s": rates})
    return 1 if failed else 0


def check_core() -> Check:
    module, reason = native.native_module()
    if module is None:
        return Check("compiled module", "fail", reason, "run `pip install .` in the source folder of memsys")
    return Check("compiled module", "ok", f"CRC32C: {native.checksum_name()}")


def check_torch() -> Check:
    version = facts.torch_version()
    if version.startswith("missing"):
        return Check("torch", "fail", version, "pip install torch")
    return Check("torch", "ok", version)


def check_memory() -> Check:
    """64 MiB of memory touched, and locked in RAM by a GPU's driver where there is one."""
    name, free = "pinned allocation", available_host_bytes()
    if free < 2 * _PINNED_BYTES:
        return Check(name, "fail", f"{format_bytes(free)} available", "stop other programs or raise the cgroup limit")
    if native.cuda_status()["device_count"] == 0:
        with mmap.mmap(-1, _PINNED_BYTES) as block:
            block[:: mmap.PAGESIZE] = bytes(_PINNED_BYTES // mmap.PAGESIZE)
        return Check(name, "ok", f"{format_bytes(_PINNED_BYTES)} of RAM; without a GPU nothing needs pinning")
    try:
        import torch

        torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except (ImportError, RuntimeError) as error:
        remedy = "raise the memory-lock limit (ulimit -l unlimited) or give a smaller host_budget"
        return Check(name, "fail", str(error).splitlines()[0], remedy)
    return Check(name, "ok", f"{format_bytes(_PINNED_BYTES)} pinned")


def check_uring() -> Check:
    works, reason = native.uring_status()
    if works:
        return Check("io_uring", "ok", "works")
    remedy = "none needed, threads do the work; to have it, set kernel.io_uring_disabled=0 and let the container use it"
    return Check("io_uring", "warn", reason, remedy)


def check_folder(folder: facts.SpillFolder) -> list[Check]:
    """The checks of the spill folder; a folder that cannot be used at all is one failure."""
    elsewhere = "give another folder: spill_dir=, --spill-dir or TMPDIR"
    if not folder.exists or not folder.writable or folder.is_symlink:
        if not folder.exists:
            problem = "is missing"
        else:
            problem = "is a symbolic link" if folder.is_symlink else "is not writable"
        return [Check("spill folder", "fail", f"{folder.path} {problem}", elsewhere)]
    where = f"{folder.path} on {folder.filesystem}"
    in_memory = Check("spill folder", "warn", f"{where}: files there are RAM", elsewhere)
    direct = f"alignment {folder.direct_alignment}"
    slow = "works through the page cache, slower; a local disk (ext4, xfs) has it"
    free = format_bytes(folder.free_bytes)
    return [
        in_memory if folder.in_memory else Check("spill folder", "ok", where),
        Check("O_TMPFILE", "ok", "yes")
        if folder.has_tmpfile
        else Check("O_TMPFILE", "warn", folder.message or "no", "none needed: files are unlinked at once instead"),
        Check("O_DIRECT", "ok", direct) if folder.has_direct else Check("O_DIRECT", "warn", "no", slow),
        Check("free disk", "ok", free)
        if folder.free_bytes >= _LITTLE_DISK_BYTES
        else Check("free disk", "warn", free, "free some space, or " + elsewhere),
    ]


def check_gpu(cuda: dict[str, Any]) -> list[Check]:
    """The driver found and the one needed; no GPU is no failure, memsys runs on the CPU then."""
    runtime = cuda["runtime_version"]
    if not cuda["built"]:
        remedy = "none needed on a CPU; for a GPU, install the CUDA toolkit and `pip install .` again"
        return [Check("CUDA", "warn", cuda["message"] or "built without CUDA", remedy)]
    least = _LEAST_DRIVER.get(runtime // 1000, "of its age")
    needed = f"CUDA {native.cuda_version_text(runtime)} needs driver {least} or newer"
    driver, count = cuda["driver_version"], cuda["device_count"]
    if driver == 0:
        return [Check("CUDA driver", "warn", f"none; {needed}", "none needed on a CPU; for a GPU, install that driver")]
    found = f"driver for CUDA {native.cuda_version_text(driver)}; {needed}"
    if driver // 1000 < runtime // 1000:
        remedy = "update the driver, or build with an older CUDA toolkit (12.4 or later); until then the CPU is used"
        return [Check("CUDA driver", "fail", found, remedy)]
    devices = Check("CUDA devices", "ok", str(count))
    if count == 0:
        devices = Check("CUDA devices", "warn", cuda["message"] or "0", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return [Check("CUDA driver", "ok", found), devices]


def measure_rates(folder: facts.SpillFolder, has_gpu: bool) -> dict[str, float | None]:
    """Bytes per second of each link; None where it could not be measured."""
    rates: dict[str, float | None] = {"memory copy, one thread": links.measure_copy_rate()}
    try:
        file = links.measure_file_rates(folder.path)
        rates["file write"], rates["file read"] = file.write_rate, file.read_rate
    except OSError:
        rates["file write"] = rates["file read"] = None
    if has_gpu:
        rates["to the GPU, pinned"], rates["from the GPU, pinned"] = links.measure_gpu_rates()
    return rates
