"""The command line from outside: parser, exit statuses, plain output, JSON."""

from __future__ import annotations

import argparse
import io
import json

import pytest

from memsys.budget import BudgetFormatError
from memsys.cli import doctor, facts, main, native
from memsys.cli.console import plain_table, wants_rich
from memsys.cli.setting import Setting, add_setting_options
from memsys.cli.text import TextError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_folder(**changes) -> facts.SpillFolder:
    good = {"path": "/x", "exists": True, "writable": True, "is_symlink": False, "in_memory": False}
    good |= {"has_tmpfile": True, "has_direct": True, "direct_alignment": 512, "free_bytes": 1 << 40}
    return facts.SpillFolder(**(good | {"filesystem": "ext4", "message": ""} | changes))


def test_every_command_has_its_options():
    parser = main.make_parser()
    for name in main.COMMANDS:
        arguments = parser.parse_args([name, "--json"])
        assert arguments.json
        assert callable(arguments.run)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["train", "--steps", "0"],
        ["train", "--dtype", "int8"],
        ["train", "--device-budget", "lots"],
        ["env", "--no-such"],
    ],
)
def test_bad_options_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage: memsys" in capsys.readouterr().err


def test_help_of_every_command(capsys):
    for argv in ([], *([name] for name in main.COMMANDS)):
        with pytest.raises(SystemExit) as caught:
            main.main([*argv, "--help"])
        assert caught.value.code == 0
    assert "--device-budget" in capsys.readouterr().out


def test_a_setting_survives_its_options():
    setting = Setting(layers=3, dtype="bf16", device_budget="5MiB", return_memory=True, policy="all", data="a b")
    parser = argparse.ArgumentParser()
    add_setting_options(parser)
    assert Setting.from_arguments(parser.parse_args(setting.to_argv())) == setting
    assert Setting.from_arguments(parser.parse_args([])) == Setting()


def _fail_with(error):
    def run(arguments, printer):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("host memory: wanted 5 bytes,\n found 4"), 1),
        (OSError(28, "No space left on device"), 2),
        (BudgetFormatError("much", "is not a number with a unit"), 2),
        (TextError("too short"), 2),
        (ImportError("no module"), 2),
    ],
    ids=["budget", "os", "format", "text", "import"],
)
def test_errors_are_one_line_without_traceback(error, status, monkeypatch, capsys):
    monkeypatch.setattr("memsys.cli.env.run", _fail_with(error))
    assert main.main(["env"]) == status
    message = capsys.readouterr().err
    assert message.startswith("memsys: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("memsys.cli.env.run", _fail_with(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        main.main(["env"])


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr("memsys.cli.env.run", _fail_with(KeyboardInterrupt()))
    assert main.main(["env"]) == 130
    assert capsys.readouterr().err == "memsys: interrupted\n"


def test_no_color_and_pipes_are_plain(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_rich(Terminal())
    assert not wants_rich(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_rich(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_rich(Terminal())


def test_a_terminal_shows_the_same_facts_in_colour(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    from memsys.cli.console import Printer

    Printer().table("title", ["check", "status"], [["[disk]", "fail"]])
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "[disk]" in text


def test_plain_tables_are_aligned():
    lines = plain_table("title", ["a", "long column"], [["wide cell", "1"], ["b", ""]]).splitlines()
    assert lines == ["title", "a          long column", "---------  -----------", "wide cell  1", "b"]


def test_env_prints_a_paste_block(capsys, tmp_path):
    assert main.main(["env", "--spill-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for key in ("memsys", "torch", "kernel", "io_uring", "RLIMIT_MEMLOCK", "cgroup memory limit", "CRC32C"):
        assert f"\n- {key}: " in text
    assert str(tmp_path) in text


def test_env_as_json_has_the_same_keys(capsys, tmp_path):
    main.main(["env", "--json", "--spill-dir", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert all(isinstance(value, str) and value for value in found.values())
    main.main(["env", "--spill-dir", str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert [line[2:].split(": ")[0] for line in lines] == list(found)


def test_doctor_as_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("memsys.report.links._LONGEST_S", 0.05)
    status = main.main(["doctor", "--json", "--spill-dir", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"ok", "checks", "rates_bytes_per_s"}
    assert status == (0 if found["ok"] else 1)
    assert found["ok"] == all(check["status"] != "fail" for check in found["checks"])
    for check in found["checks"]:
        assert set(check) == {"name", "status", "found", "remedy"}
        assert check["status"] in ("ok", "warn", "fail")
        assert check["status"] == "ok" or check["remedy"]
    assert found["rates_bytes_per_s"]["memory copy, one thread"] > 0
    assert found["rates_bytes_per_s"]["file read"] > 0


def test_doctor_fails_for_a_missing_folder_and_still_reports(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("memsys.report.links._LONGEST_S", 0.05)
    assert main.main(["doctor", "--spill-dir", str(tmp_path / "missing")]) == 1
    text = capsys.readouterr().out
    assert "is missing" in text
    assert "not measured" in text


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"exists": False}, "spill folder", "fail", "is missing"),
        ({"writable": False}, "spill folder", "fail", "is not writable"),
        ({"is_symlink": True}, "spill folder", "fail", "is a symbolic link"),
        ({"in_memory": True, "filesystem": "tmpfs"}, "spill folder", "warn", "files there are RAM"),
        ({"has_tmpfile": False}, "O_TMPFILE", "warn", "no"),
        ({"has_direct": False}, "O_DIRECT", "warn", "no"),
        ({"free_bytes": 1 << 20}, "free disk", "warn", "1.00 MiB"),
    ],
)
def test_doctor_judges_the_spill_folder(changes, name, status, words):
    checks = {check.name: check for check in doctor.check_folder(make_folder(**changes))}
    assert checks[name].status == status
    assert words in checks[name].found
    assert checks[name].remedy
    assert {check.status for check in doctor.check_folder(make_folder())} == {"ok"}


@pytest.mark.parametrize(
    ("cuda", "status", "words"),
    [
        ({"built": False, "message": "built without CUDA"}, "warn", "built without CUDA"),
        ({"driver_version": 0}, "warn", "needs driver 580.65"),
        ({"driver_version": 12040}, "fail", "driver for CUDA 12.4"),
        ({"driver_version": 13000, "device_count": 1}, "ok", "CUDA 13.0"),
    ],
)
def test_doctor_names_the_driver_found_and_needed(cuda, status, words):
    known = {"built": True, "runtime_version": 13000, "driver_version": 0, "device_count": 0, "message": ""}
    first = doctor.check_gpu(known | cuda)[0]
    assert first.status == status
    assert words in first.found


def test_a_broken_module_is_said_plainly(monkeypatch):
    monkeypatch.setattr(native, "native_module", lambda: (None, "undefined symbol"))
    assert doctor.check_core().status == "fail"
    assert native.uring_status() == (False, native.MISSING)
    assert native.cuda_status()["device_count"] == 0
    assert facts.inspect_spill_folder("/var/tmp").exists
