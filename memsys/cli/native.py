"""What the commands ask of the compiled module, in plain Python values, and what they say where it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

STATS_FIELDS = (
    "packed_count",
    "passed_count",
    "out_bytes",
    "in_bytes",
    "aliased_bytes",
    "remade_bytes",
    "peak_device_bytes",
    "peak_host_bytes",
    "peak_file_bytes",
    "stall_us",
    "late_count",
)
MISSING = "the compiled module does not load"


def native_module() -> tuple[ModuleType | None, str]:
    """(the compiled module, "") or (None, why it does not load)."""
    try:
        from memsys import _C
    except ImportError as error:
        return None, str(error)
    return _C, ""


def stats_of(model: Any) -> dict[str, int]:
    """`memsys.stats(model)` as a dictionary."""
    import memsys

    stats = memsys.stats(model)
    return {name: getattr(stats, name) for name in STATS_FIELDS}


def uring_status() -> tuple[bool, str]:
    """(whether io_uring works here, why not)."""
    native, _ = native_module()
    return (False, MISSING) if native is None else native.probe_uring()


def cuda_status() -> dict[str, Any]:
    """built, runtime_version, driver_version, device_count, message."""
    native, _ = native_module()
    if native is not None:
        return dict(native.cuda_status())
    return {"built": False, "runtime_version": 0, "driver_version": 0, "device_count": 0, "message": MISSING}


def checksum_name() -> str:
    """Which CRC32C this machine runs."""
    native, _ = native_module()
    return f"unknown: {MISSING}" if native is None else native.crc32c_implementation()


def cuda_version_text(version: int) -> str:
    """13000 -> "13.0"; 0 -> "none"."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else "none"


@dataclass(frozen=True)
class VerifyOutcome:
    """Whether loss and gradients are equal to the last bit, and the report in one line."""

    equal: bool
    text: str


def verify_run(run: Any) -> VerifyOutcome:
    """`memsys.verify` of the run's model on its first batch, offloading as the run's setting says."""
    import memsys

    memsys.offload(run.model, **run.setting.offload_keywords())
    try:
        report = memsys.verify(run.trained, args=run.batch(0))
    finally:
        memsys.restore(run.model)
    return VerifyOutcome(bool(report.equal), " ".join(str(report).split()))
