"""What can't work says so at the call, with what was found and a remedy; a disk that fills up costs no gradient."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import warnings

import pytest
import torch
from built import needs_memsys
from torch import nn

needs_memsys()

from gradients import TIERS, assert_idle, assert_same, offloaded, small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys import _C, runtimes  # noqa: E402


@pytest.mark.parametrize("name", ["device_budget", "host_budget", "disk_budget"])
@pytest.mark.parametrize("value", ["", "lots", "20 GiBs", "-1GiB", -5, "120%", "1e9", 1.5, True, "nan", [1], "0.5"])
def test_a_senseless_budget(name, value, tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match="example") as raised:
        memsys.offload(model, spill_dir=tmp_path, **{name: value})
    assert repr(value) in str(raised.value)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("thing", [None, 3, "model", torch.zeros(2), lambda x: x, nn.Linear], ids=repr)
def test_what_is_no_module(thing):
    with pytest.raises(memsys.InputError, match="offload_activations"):
        memsys.offload(thing)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "fastest"}, "policy='auto'"),
        ({"policy": 3}, "policy='auto'"),
        ({"min_bytes": -1}, "262144"),
        ({"min_bytes": "1KiB"}, "262144"),
        ({"plan": object()}, "policy='auto'"),
    ],
)
def test_a_senseless_option(options, text, tmp_path):
    with pytest.raises(memsys.MemsysError, match=text):
        memsys.offload(small_model(), spill_dir=tmp_path, **options)


@pytest.mark.parametrize("decision", [None, "FILE", memsys.RECOMPUTE(object()), memsys.ROWS(0.5, object())])
def test_a_policy_that_answers_what_cannot_be_done(decision, tmp_path):
    model = offloaded(small_model(), tmp_path, lambda saved: decision)
    with pytest.raises(memsys.MemsysError, match="HOST"):
        model(small_input())
    memsys.restore(model)
    assert_same(step(model, small_input()), step(small_model(), small_input()))


def test_stats_of_a_model_that_is_not_offloaded():
    with pytest.raises(memsys.InputError, match=r"memsys\.offload"):
        memsys.stats(small_model())


def refused(folder) -> None:
    """A spill folder is refused at the call, or at the first step at the latest, by its name."""
    with pytest.raises(memsys.SpillError, match=f"spill.*{re.escape(str(folder))}"):
        step(offloaded(small_model(), folder), small_input())


def test_a_spill_folder_that_is_missing(tmp_path):
    refused(tmp_path / "nowhere")


def test_a_spill_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    refused(tmp_path / "file")


def test_a_spill_folder_that_leads_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "link")


def test_a_spill_folder_that_may_not_be_written(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(tmp_path / "locked")


def test_a_spill_folder_that_is_a_link_to_one(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    refused(tmp_path / "link")


@pytest.fixture
def mounted(tmp_path):
    """Mounts a tmpfs with these options; undone after the test."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a tmpfs here: {error}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_spill_folder_that_is_mounted_read_only(mounted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(mounted("size=4m,ro"))


def test_a_spill_folder_in_memory_warns(mounted):
    folder = mounted("size=64m")
    with pytest.warns(UserWarning, match="memory itself.*disk"):
        model = offloaded(small_model(), folder)
    assert_same(step(model, small_input()), step(small_model(), small_input()))


@pytest.mark.filterwarnings("ignore:spill_dir .* is on tmpfs:UserWarning")
def test_a_full_disk_falls_back(mounted):
    folder = mounted("size=4m")
    (folder / "ballast").write_bytes(bytes(4000 << 10))
    model = offloaded(small_model(), folder, disk_budget="1GiB")
    for seed in range(3):
        assert_same(step(model, small_input(seed)), step(small_model(), small_input(seed)))
    assert_idle(model)


@pytest.mark.filterwarnings("ignore:spill_dir .* is on tmpfs:UserWarning")
def test_a_disk_that_fills_up_in_mid_step(mounted):
    """The step ends bit-exact or with a typed error; after room is made, the next is right."""
    folder = mounted("size=4m")
    model = offloaded(small_model(), folder, disk_budget="1GiB")
    wanted = step(small_model(), small_input())
    assert_same(step(model, small_input()), wanted)
    hook = model[1].register_forward_pre_hook(lambda *_: fill(folder))
    assert_same_or_refused(model, wanted)
    hook.remove()
    (folder / "ballast").unlink()
    assert_same(step(model, small_input()), wanted)
    assert_idle(model)


def assert_same_or_refused(model, wanted) -> None:
    """A step gives the right gradients, or a typed error; never wrong ones."""
    try:
        found = step(model, small_input())
    except (memsys.SpillError, memsys.BudgetError):
        return
    assert_same(found, wanted)


def fill(folder) -> None:
    """Takes all the room that is left."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("span", ["once", "persistent"])
@pytest.mark.parametrize("at", [0, 1, 5, 11])
@pytest.mark.parametrize("fault", ["no_space", "io_error", "short_transfer", "interrupted", "again"])
def test_writes_that_fail_cost_no_gradient(fault, at, span, tmp_path):
    runtime = _C.Runtime(_C.DeviceKind.host, faults=_C.FaultSeam.faulty)
    runtimes.override_runtime(runtime)
    try:
        wanted = step(small_model(), small_input())
        model = offloaded(small_model(), tmp_path, TIERS["file"])
        runtime.arm_io(_C.IoFault.__members__[fault], at, _C.FaultSpan.__members__[span])
        assert_same_or_refused(model, wanted)
        runtime.arm_io(_C.IoFault.none, 0, _C.FaultSpan.once)
        assert_same(step(model, small_input()), wanted)
        assert_idle(model)
        memsys.restore(model)
    finally:
        runtimes.override_runtime(None)


def test_no_room_anywhere_is_a_typed_error(tmp_path):
    model = offloaded(small_model(), tmp_path, device_budget="8KiB", disk_budget=0)
    with pytest.raises(memsys.BudgetError, match="budget"):
        step(model, small_input())
    memsys.restore(model)
    assert_same(step(model, small_input()), step(small_model(), small_input()))
