"""`memsys plan`: its tables, its JSON, its exit statuses, the line to paste, and a machine that is measured."""

from __future__ import annotations

import json

import pytest

import memsys
from memsys.cli import main
from memsys.planning.gpus import MACHINES
from memsys.planning.hardware import exactly
from memsys.report import machine as measuring

GPT = ["plan", "--model", "gpt-7b", "--gpu", "a800", "--gpus", "8", "--policy", "tokenwise"]


@pytest.fixture
def small_measures(monkeypatch) -> None:
    """Measures sizes that take no time."""
    monkeypatch.setattr(measuring, "_CPU_SIZES", {"width": 64, "seq": 64, "heads": 2, "elements": 1 << 12})
    monkeypatch.setattr("memsys.report.links._LONGEST_S", 0.05)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def run_json(capsys, argv: list[str]) -> tuple[int, dict]:
    status = main.main([*argv, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, json.loads(captured.out)


def test_the_numbers_are_those_of_simulate(capsys) -> None:
    status, found = run_json(capsys, [*GPT, "--seq", "65536", "--host-budget", "100GiB"])
    same = memsys.simulate("gpt-7b", "a800", 65536, 8, "tokenwise", host_budget="100GiB")
    assert status == 0
    assert found["fits"]
    assert found["peak_bytes"] == same.peak_bytes
    assert found["step_us"]["middle"] == same.step_us
    assert found["mfu"]["low"] < found["mfu"]["middle"] < found["mfu"]["high"]
    assert found["added_us"] == pytest.approx(same.remade_us + same.exposed_us, abs=1)
    assert found["alpha"] == same.alpha
    assert sum(found["placed_bytes"].values()) == found["saved_bytes"]
    assert found["figures"]["peak_flops"]["source"].startswith("NVIDIA")


def test_the_longest_sequences_rise(capsys) -> None:
    _, found = run_json(capsys, [*GPT, "--seq", "65536", "--host-budget", "64GiB", "--disk-budget", "128GiB"])
    lengths = [item["seq"] for item in found["longest"].values()]
    assert list(found["longest"]) == ["nothing", "checkpoint", "memsys host", "memsys host+file"]
    assert lengths == sorted(lengths)
    assert lengths[0] > 0


def test_what_does_not_fit_ends_with_status_1(capsys) -> None:
    argv = ["plan", "--model", "gpt-7b", "--gpu", "a800", "--seq", "65536", "--policy", "none"]
    status, found = run_json(capsys, [*argv, "--device-budget", "8GiB"])
    assert status == 1
    assert found["overruns"][0]["tier"] == "device"
    assert found["overruns"][0]["wanted_bytes"] > found["overruns"][0]["budget_bytes"]
    assert main.main([*argv, "--device-budget", "8GiB"]) == 1
    assert "does not fit: device wants" in capsys.readouterr().out


def test_figures_that_nobody_read_are_named(capsys) -> None:
    main.main(["plan", "--model", "gpt-tiny", "--gpu", "h200", "--seq", "1024", "--policy", "none"])
    assert "unverified: gemm_share" in capsys.readouterr().out


def test_the_tables_say_what_is_wanted_and_there(capsys) -> None:
    assert main.main([*GPT, "--seq", "65536", "--host-budget", "100GiB"]) == 0
    text = capsys.readouterr().out
    for words in ("wanted", "there", "optimizer (beside)", "100.0 GiB", "what goes where (tokenwise)", "made again",
                  "added time", "longest sequence", "memsys host+file"):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text


@pytest.mark.parametrize("budgets", [[], ["--device-budget", "20GiB", "--host-budget", "64GiB"]])
def test_the_line_calls_offload_with_keywords_that_it_has(capsys, budgets: list[str]) -> None:
    _, found = run_json(capsys, [*GPT, "--seq", "16384", *budgets])
    called = {}

    class Fake:
        @staticmethod
        def offload(model, **keywords):
            called.update(keywords)
            return model

    exec(found["line"], {"memsys": Fake, "model": 1})
    assert called["device_budget"] == "20GiB" or not budgets
    assert called.get("host_budget") == ("64GiB" if budgets else None)
    import inspect

    assert set(called) <= set(inspect.signature(memsys.offload).parameters)


@pytest.mark.parametrize(
    "argv",
    [["plan", "--model", "gpt-9b"], ["plan", "--gpu", "k80"], ["plan", "--gpu", "a800", "--here"],
     ["plan", "--seq", "0"], ["plan", "--gpu", "a800", "--host-budget", "much"]],
)  # fmt: skip
def test_bad_options_end_with_status_2(argv, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage: memsys plan" in capsys.readouterr().err


def test_this_machine_is_measured(small_measures, tmp_path) -> None:
    found = measuring.measure_machine(str(tmp_path))
    assert found.is_host_memory
    assert found.rates().host is None
    assert found.rates().file.out_rate > 0
    assert found.peak_flops.source.startswith("measured on this machine")
    assert max(found.gemm_share.value, found.attention_forward_share.value) <= 1
    unmeasured = {name for name, figure in found.figures().items() if not figure.is_verified}
    assert unmeasured == {"both_share", "collective_rate"}


def test_a_known_gpu_has_its_datasheets_peak() -> None:
    assert measuring._peak_flops("NVIDIA H200", 6e14) == (989e12, MACHINES["h200"].peak_flops.source)
    assert measuring._peak_flops("NVIDIA GeForce RTX 4090", 1e14)[0] == 165.2e12
    assert measuring._peak_flops("NVIDIA Something", 5e14)[0] == 5e14
    assert measuring._peak_flops("NVIDIA H200", 2e15)[0] == 2e15  # more than the datasheet's is another device


def test_here_plans_for_the_processor(small_measures, capsys, tmp_path) -> None:
    argv = ["plan", "--model", "gpt-tiny", "--here", "--seq", "512", "--device-budget", "64MiB", "--policy", "all",
            "--spill-dir", str(tmp_path)]  # fmt: skip
    status, found = run_json(capsys, argv)
    assert status == 0
    assert found["budget_bytes"]["host"] is None
    assert list(found["longest"]) == ["nothing", "checkpoint", "memsys host+file"]
    # fp32: 16 units of 256 elements, 4 layers, and two of the head.
    assert found["saved_bytes"] == (4 * 16 + 2) * 256 * 512 * 4
    assert found["peak_bytes"]["file"] == found["saved_bytes"]


def test_the_default_is_the_model_of_train_on_this_machine(small_measures, capsys, tmp_path) -> None:
    status, found = run_json(capsys, ["plan", "--spill-dir", str(tmp_path), "--policy", "checkpoint"])
    assert (found["model"], found["machine"], found["seq"]) == ("gpt-train", "this processor", 2048)
    assert status == (0 if found["fits"] else 1)


def test_a_percentage_of_a_named_gpus_memory(capsys) -> None:
    _, found = run_json(capsys, [*GPT, "--seq", "16384", "--device-budget", "50%"])
    there = int(exactly(80 << 30, "x").value * 0.95) // 2
    assert found["budget_bytes"]["device"] == pytest.approx(there - found["transient_bytes"], abs=2)
