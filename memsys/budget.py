"""Budgets as people write them ("20GiB", "512MB", "80%", 1 << 30) and the free memory and disk that "%" refers to.

One parser serves device, host and disk budgets, so that the same text means the same bytes everywhere.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

_UNIT_BYTES = {"": 1, "b": 1, "bytes": 1}
_UNIT_BYTES |= {f"{letter}ib": 1 << (10 * power) for power, letter in enumerate("kmgtp", 1)}
_UNIT_BYTES |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)}
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*|%)\s*", re.ASCII)
# Byte counts cross into C++ as int64.
_LARGEST_BYTES = (1 << 63) - 1
_LONGEST_TEXT = 100
# cgroup v1 says "no limit" with a number near 2**63; anything this large is no limit of a real machine.
_NO_LIMIT_BYTES = 1 << 60
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


class BudgetFormatError(ValueError):
    """A budget that is no byte count; the message names what was asked, what is accepted, and one example."""

    def __init__(self, asked: object, reason: str) -> None:
        super().__init__(
            f"budget {_shown(asked)} {reason}; accepted: a whole number of bytes, a number with KB, MB, GB, TB, KiB, "
            f'MiB, GiB or TiB, or a percentage of what is free from 0% to 100%; example: "20GiB"'
        )


def _shown(asked: object) -> str:
    """What was asked, at a length that a message can have: Python itself writes no number of more than 4300 digits."""
    if isinstance(asked, int) and asked.bit_length() > 256:
        return f"of {'-' if asked < 0 else ''}2**{asked.bit_length() - 1} and more"
    text = repr(asked)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def parse_budget(value: int | str | None, available: Callable[[], int]) -> int | None:
    """The bytes that `value` asks for; None (no budget given) stays None.

    Args:
        value: bytes as an integer, "20GiB", "20GB", "512MiB", "0.5TiB" (rounded down), or "80%".
        available: called for a percentage only; the free bytes that it is a share of.

    Raises:
        BudgetFormatError: (a ValueError) for anything else: negative, NaN, float, bool, unknown unit, over 2**63 - 1.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _parse_text(value, available)
    if isinstance(value, (bool, float)):
        raise BudgetFormatError(value, f"is a {type(value).__name__}, not a byte count")
    try:
        count = operator.index(value)
    except TypeError:
        raise BudgetFormatError(value, f"is a {type(value).__name__}, not a byte count") from None
    return _checked(value, count)


def _parse_text(text: str, available: Callable[[], int]) -> int:
    if len(text) > _LONGEST_TEXT:
        raise BudgetFormatError(text, f"has {len(text)} characters, more than a number with a unit needs")
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise BudgetFormatError(text, "is not a number with a unit")
    number, unit = Fraction(match[1]), match[2].lower()
    if unit == "%":
        if number > 100:
            raise BudgetFormatError(text, "is more than everything that is free")
        return int(number * available() / 100)
    if unit not in _UNIT_BYTES:
        raise BudgetFormatError(text, f"has the unknown unit {match[2]!r}")
    count = number * _UNIT_BYTES[unit]
    if _UNIT_BYTES[unit] == 1 and count.denominator != 1:
        raise BudgetFormatError(text, "asks for a part of a byte")
    return _checked(text, int(count))


def _checked(asked: object, count: int) -> int:
    if count < 0:
        raise BudgetFormatError(asked, "is negative")
    if count > _LARGEST_BYTES:
        raise BudgetFormatError(asked, "is more than 2**63 - 1 bytes")
    return count


def format_bytes(count: int | float) -> str:
    """`count` bytes as people read them: "17 bytes", "12.0 KiB", "1.50 GiB"."""
    if abs(count) < 1024:
        return f"{int(count)} bytes"
    units = ["TiB", "GiB", "MiB", "KiB"]
    size = count / 1024
    while abs(size) >= 1024 and len(units) > 1:
        units.pop()
        size /= 1024
    return f"{size:.2f} {units[-1]}" if abs(size) < 10 else f"{size:.1f} {units[-1]}"


def available_host_bytes() -> int:
    """What this process can still allocate: the smaller of MemAvailable and the room left in its cgroups (v1 or v2)."""
    room = cgroup_room_bytes()
    free = _fields_of(Path("/proc/meminfo"), ":")["MemAvailable"] * 1024
    return free if room is None else min(free, room)


def available_disk_bytes(folder: str | os.PathLike[str]) -> int:
    """The free bytes of the file system that holds `folder`, without the part kept for root. Raises OSError."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def cgroup_limit_bytes() -> int | None:
    """The tightest memory limit on this process's cgroup and its parents; None where there is none."""
    limits = [limit for limit, _ in _cgroup_levels()]
    return min(limits, default=None)


def cgroup_room_bytes() -> int | None:
    """The bytes left under the tightest of those limits; None where there is no limit."""
    return min((max(0, limit - used) for limit, used in _cgroup_levels()), default=None)


def _cgroup_levels() -> list[tuple[int, int]]:
    """(limit, used) of each limited level from the process's own cgroup up to the root."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    levels: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, and only the root of the mount is there.
        for level in dict.fromkeys([folder, *folder.parents, root]):
            if level.is_relative_to(root) and (found := _read_level(level, *names)) is not None:
                levels.append(found)
    return levels


def _read_level(folder: Path, limit_name: str, used_name: str, cache_name: str) -> tuple[int, int] | None:
    try:
        limit = int((folder / limit_name).read_text())
        used = int((folder / used_name).read_text())
        # Page cache that nobody touches is given up before the limit bites.
        used -= _fields_of(folder / "memory.stat", " ").get(cache_name, 0)
    except (OSError, ValueError):
        return None  # "max", a level without the controller, or one that is not mounted here
    return (limit, max(0, used)) if limit < _NO_LIMIT_BYTES else None


def _fields_of(path: Path, separator: str) -> dict[str, int]:
    pairs = (line.split(separator, 1) for line in path.read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in pairs}


def filesystem_of(folder: str | os.PathLike[str]) -> str:
    """The file system type that holds `folder` ("ext4", "tmpfs", ...), or "unknown"."""
    real = os.path.realpath(folder)
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, escaped, name = line.split(" ")[:3]
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def is_memory_filesystem(folder: str | os.PathLike[str]) -> bool:
    """Whether files in `folder` are RAM themselves, so that spilling there frees nothing."""
    return filesystem_of(folder) in _MEMORY_FILESYSTEMS


def default_spill_dir() -> str:
    """TMPDIR (else /tmp), unless that is missing or lies in memory: then /var/tmp."""
    folder = os.environ.get("TMPDIR") or "/tmp"
    return folder if os.path.isdir(folder) and not is_memory_filesystem(folder) else "/var/tmp"
