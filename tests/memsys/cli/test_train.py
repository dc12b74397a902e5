"""The main job from end to end on a tiny model, and how it reports; and verify, which shares its path."""

from __future__ import annotations

import importlib
import json
import os

import pytest

from memsys.cli import main, measure, setting, train
from memsys.cli.console import Printer
from memsys.cli.setting import Setting

TINY = ["--layers", "3", "--width", "128", "--seq", "256", "--device", "cpu"]


def needs_offload() -> None:
    """Skips, with the reason, where the compiled module is not there."""
    try:
        importlib.import_module("memsys._C")
    except ImportError as error:
        pytest.skip(f"memsys._C does not load: {error}")


@pytest.fixture
def text(tmp_path) -> list[str]:
    (tmp_path / "text").write_bytes(b"for i in range(10):\n    print(i)\n" * 400)
    return ["--data", str(tmp_path / "text"), "--spill-dir", str(tmp_path)]


def test_training_past_the_budget_is_verified_and_compared(text, tmp_path, monkeypatch, capsys):
    needs_offload()
    monkeypatch.setattr(train, "_COMPARE_ROUNDS", 1)
    budget = 4 << 20
    argv = ["train", *TINY, *text, "--steps", "3", "--device-budget", str(budget), "--policy", "all", "--json"]
    status = main.main(argv)
    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert result["saved_bytes"] > budget >= result["stats"]["peak_device_bytes"] > 0
    assert result["stats"]["out_bytes"] > 0
    assert result["stats"]["peak_file_bytes"] > 0
    assert result["verify"]["equal"]
    assert set(result["compare"]) == {"plain", "memsys"}
    assert result["compare"]["memsys"]["loss_equal"]
    losses = [step["loss"] for step in result["steps"]]
    assert losses[-1] < losses[0]
    # The worker's steps are the same training.
    assert losses == result["compare"]["plain"]["loss"][: len(losses)]
    assert os.listdir(tmp_path) == ["text"]


def test_plain_output_says_what_exceeds_what(text, capsys):
    needs_offload()
    assert main.main(["train", *TINY, *text, "--steps", "2", "--device-budget", "4MiB", "--no-compare"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "exceeds the device budget of 4.00 MiB" in output
    assert "stayed within the budget of 4.00 MiB" in output
    assert "link use" in output


def test_a_budget_that_is_large_enough_says_so(text, capsys):
    needs_offload()
    assert main.main(["train", *TINY, *text, "--steps", "1", "--device-budget", "1GiB", "--no-compare"]) == 0
    assert "that fits the device budget" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["all", "inputs", "auto"])
def test_verify_compares_bit_for_bit(policy, text, capsys):
    needs_offload()
    assert main.main(["verify", *TINY, *text, "--policy", policy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"]


@pytest.mark.parametrize("return_memory", [False, True])
def test_measuring_memsys_gives_the_bits_of_plain(return_memory, text, tmp_path):
    needs_offload()
    asked = Setting(layers=2, width=128, seq=128, device="cpu", data=text[1], spill_dir=str(tmp_path), policy="all")
    asked = Setting(**vars(asked) | {"return_memory": return_memory})
    result = measure.measure(asked, "memsys", steps=2)
    assert result["loss"] == measure.measure(asked, "plain", steps=2)["loss"]
    assert result["stats"]["packed_count"] > 0


def test_a_spent_budget_is_loud(capsys):
    stats = dict.fromkeys(("out_bytes", "in_bytes", "stall_us", "late_count", "packed_count"), 0)
    train.describe_end(stats | {"peak_device_bytes": 11}, {"device_budget_bytes": 10}, False, Printer())
    assert "peak on the device: 11 bytes, EXCEEDED the budget of 10 bytes" in capsys.readouterr().out


def test_a_long_context_gets_a_small_model_and_no_comparison(text, tmp_path, monkeypatch, capsys):
    needs_offload()
    monkeypatch.setattr(setting, "LONG_SEQ", 512)
    monkeypatch.setattr(train, "LONG_DEFAULTS", Setting(layers=1, width=64, device_budget="2MiB"))
    assert main.main(["train", "--seq", "1024", "--device", "cpu", *text, "--policy", "all", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["setting"]["layers"], result["setting"]["width"]) == (1, 64)
    assert result["setting"]["device_budget"] == "2MiB"
    assert len(result["steps"]) == 2
    assert "compare" not in result and "verify" not in result
    assert result["budget_kept"] and result["stats"]["out_bytes"] > 0
