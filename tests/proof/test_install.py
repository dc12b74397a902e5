"""The install that a user makes: an isolated build that sees no torch, with nvcc where there is one and without CUDA,
and the wheel imported and trained with from an empty folder. What this machine has not is written down as not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import proof
import pytest

pytestmark = [pytest.mark.proof, pytest.mark.nightly, pytest.mark.timeout(1800)]

TARGET_S = 60
NOT_RUN = ["Python 3.12", "torch 2.11", "a GPU's driver"]
TRAIN = """
import memsys, torch
from memsys import _C
model = memsys.offload(torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256)),
                       policy="all", min_bytes=1)
print(memsys.verify(model, (torch.randn(256, 256),)).equal, _C.cuda_status()["built"], memsys.__file__)
"""
_seconds: dict[str, float] = {}
_built: dict[str, bool] = {}


def clean_copy(folder: Path) -> Path:
    """The commit's own files, without a build folder that would make the build short."""
    archive = folder / "source.tar"
    subprocess.run(["git", "-C", str(proof.ROOT), "archive", "-o", str(archive), "HEAD"], check=True)
    source = folder / "source"
    shutil.unpack_archive(archive, source)
    return source


@pytest.mark.parametrize("cuda", ["AUTO", "OFF"])
def test_an_isolated_build_trains(cuda, tmp_path):
    if shutil.which("git") is None or not (proof.ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    source, wheels, installed = clean_copy(tmp_path), tmp_path / "wheels", tmp_path / "installed"
    environment = os.environ | {"CMAKE_ARGS": f"-DMEMSYS_CUDA={cuda}"}
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(wheels), str(source)],
                          env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    _seconds[cuda] = time.monotonic() - begin
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with zipfile.ZipFile(next(wheels.glob("memsys-*.whl"))) as wheel:
        wheel.extractall(installed)
    told = subprocess.run([sys.executable, "-P", "-c", TRAIN], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(installed)}, cwd=tmp_path).stdout.split()  # fmt: skip
    assert told[0] == "True" and told[2].startswith(str(installed))
    _built[cuda] = told[1] == "True"
    assert cuda == "AUTO" or not _built[cuda]


def test_the_record_of_the_matrix():
    if set(_seconds) != {"AUTO", "OFF"} or not _built:
        pytest.skip("the builds were left out")
    not_run = NOT_RUN + ([] if _built["AUTO"] else ["a build with nvcc"])
    proof.record(
        "R11", "install", measure="isolated `pip wheel .`, no torch at build time, imported and trained with",
        figure=f"{'with' if _built['AUTO'] else 'without'} nvcc {_seconds['AUTO']:.0f} s, MEMSYS_CUDA=OFF "
               f"{_seconds['OFF']:.0f} s; not run: {', '.join(not_run)}",
        target=f"under {TARGET_S} s; Python 3.11 and 3.12, torch 2.11 and 2.13, with and without nvcc",
        is_met=not not_run and max(_seconds.values()) < TARGET_S, seconds=sum(_seconds.values()), not_run=not_run,
    )  # fmt: skip
