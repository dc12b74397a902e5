"""Peak memory growth: how far a stretch of work raises memory above where it stood, on RAM or on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class PeakGrowth:
    """Made before the work; `growth_bytes` afterwards is the peak since then, less what was there then.

    RAM counts resident bytes (VmHWM - VmRSS), a GPU the bytes of torch's allocator.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.baseline_bytes = torch.cuda.memory_allocated(device)
            self.is_reset = True
            return
        # Else free heap would hide the first part of the growth.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.baseline_bytes = _status_bytes("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.is_reset = True
        except OSError:
            self.is_reset = False  # some containers refuse; the peak then counts from the start of the process

    def growth_bytes(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.baseline_bytes
        return max(0, _status_bytes("VmHWM") - self.baseline_bytes)
