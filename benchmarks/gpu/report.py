"""One JSON file per phase of the GPU check: what was measured, with date, GPU, driver and torch beside it."""

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"
NO_GPU = 2  # the exit status where there is nothing to measure


def require_gpu() -> None:
    """Ends the process with status 2 and a message where torch sees no GPU."""
    if not torch.cuda.is_available():
        print(f"gpu_check: torch {torch.__version__} sees no NVIDIA GPU here, so nothing was measured", file=sys.stderr)
        raise SystemExit(NO_GPU)


def machine() -> dict[str, str | None]:
    """What a figure means nothing without."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False).stdout.split("\n")[0].strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "driver": driver or None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def save(phase: str, measured: dict) -> Path:
    """Writes results/gpu-<phase>.json, replacing an earlier one, and prints it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"gpu-{phase}.json"
    path.write_text(json.dumps({"phase": phase, "machine": machine(), **measured}, indent=2) + "\n")
    print(path.read_text(), end="")
    return path
