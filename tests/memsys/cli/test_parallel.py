"""One model in two processes that torchrun started: the bits it has without memsys, under budgets of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402
from memsys.activations.limits import parse_limits  # noqa: E402
from memsys.cli import main, parallel  # noqa: E402
from memsys.cli.run import Run  # noqa: E402
from memsys.cli.setting import Setting  # noqa: E402

BUDGET = 4 << 20
SETTING = Setting(layers=2, width=128, seq=256, device="cpu", device_budget=str(BUDGET), policy="all", lr=3e-4)


def torchrun(kind: str, setting: Setting, folder: Path, *argv: str) -> dict:
    """What `memsys train` prints as JSON in two processes, on a free port."""
    package = str(Path(memsys.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "memsys.cli.main", "train", *setting.to_argv(), "--parallel", kind, "--json", *argv]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # one process speaks


@pytest.mark.slow
@pytest.mark.parametrize("kind", parallel.KINDS)
def test_two_processes_train_as_without_memsys(kind, tmp_path):
    (tmp_path / "text").write_bytes(b"for i in range(10):\n    print(i)\n" * 400)
    setting = Setting(**vars(SETTING) | {"data": str(tmp_path / "text"), "spill_dir": str(tmp_path)})
    result = torchrun(kind, setting, tmp_path, "--steps", "2")
    assert result["verify"]["equal"], result["verify"]["report"]
    assert result["budget_kept"]
    assert result["parallel"]["replicas_equal"] is (True if kind == "ddp" else None)
    stats = result["parallel"]["stats_by_rank"]
    assert len(stats) == 2
    for found in stats:
        assert found["out_bytes"] > 0
        assert 0 < found["peak_device_bytes"] <= BUDGET
    # The two processes had sequences of their own, and share the weights: before the first update their losses are
    # those of one process, and the mean of their gradients lowers the mean of their losses.
    alone = Run.build(setting)
    expected = statistics.mean(alone.model(*alone.text.batch(step, 1, setting.seq)).item() for step in range(2))
    losses = [step["loss"] for step in result["steps"]]
    assert losses[0] == pytest.approx(expected, rel=1e-6)
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("variables", "argv", "words"),
    [
        ({}, ["--parallel", "ddp"], "torchrun --nproc-per-node 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, [], "add --parallel ddp or fsdp"),
    ],
    ids=["alone", "unasked"],
)
def test_a_start_that_does_not_fit_is_told(variables, argv, words, monkeypatch, capsys):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main.main(["train", *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_lone_process_is_all_there_is():
    with parallel.open_ranks(None, "cpu") as ranks:
        assert (ranks.gather(5), ranks.mean(2.5), ranks.by_first(lambda: 7)) == ([5], 2.5, 7)
        model = Run.build(Setting(layers=1, width=64, seq=32, device="cpu"), ranks).model
        assert ranks.have_equal(model)


def test_processes_of_one_machine_share_what_is_free(tmp_path, monkeypatch):
    alone = parse_limits("50%", None, None, str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    shared = parse_limits("50%", None, None, str(tmp_path))
    for name in ("host_budget_bytes", "disk_budget_bytes"):
        assert shared[name] == pytest.approx(alone[name] / 4, rel=0.2)  # others use the machine meanwhile
    assert parse_limits(1000, 2000, 3000, str(tmp_path)) == {
        "device_budget_bytes": 1000, "host_budget_bytes": 2000, "disk_budget_bytes": 3000
    }  # fmt: skip
