"""What the system itself refuses, beside the faults that are put in: a full disk, and the limits of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

from fresh_process import PATHS  # noqa: E402
from private_disk import private_disk  # noqa: E402

from memsys import _C  # noqa: E402

pytestmark = pytest.mark.proof

ENGINES = ["threads"] + (["uring"] if _C.probe_uring()[0] else [])
ALL = [(load, kind) for load in ("train, file", "pack") for kind in ("disk", "NOFILE", "FSIZE")]
ALL += [("train, file", "MEMLOCK"), ("stream", "NOFILE"), ("stream", "MEMLOCK")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("load", "kind"), ALL)
def test_it_is_right_or_told_and_right_again(load: str, kind: str, engine: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    with private_disk(tmp_path, "4m") if kind == "disk" else nullcontext(tmp_path) as folder:
        command = [sys.executable, "-P", str(PATHS[1] / "limited.py"), load, str(folder), kind, engine]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["wrong"] == []
    assert found["cases"] >= 3
