"""Budget text: every accepted form gives the exact bytes, and everything else a message that helps."""

from __future__ import annotations

import os
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsys import budget
from memsys.budget import BudgetFormatError, parse_budget

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def unused() -> int:
    raise AssertionError("only a percentage may ask what is free")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("20GiB", 20 * 2**30),
        ("20GB", 20 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        (" 7 kib ", 7 * 1024),
        ("0.1KB", 100),
        ("4096", 4096),
        (0, 0),
        (12345, 12345),
    ],
)
def test_accepted_forms(text, wanted):
    assert parse_budget(text, unused) == wanted


def test_none_stays_none():
    assert parse_budget(None, unused) is None


def test_percentage_is_a_share_of_what_is_free():
    assert parse_budget("80%", lambda: 1001) == 800
    assert parse_budget("12.5 %", lambda: 800) == 100
    assert parse_budget("100%", lambda: 2**62 + 1) == 2**62 + 1


NONSENSE = ["", "GiB", "-1", "-5GiB", "nan", "NaN GiB", "inf", "1e9", "20G", "20 parsecs", "1.5", "101%", "-1%", "٣GiB"]
NONSENSE += ["1,5GB", "20GiB please", "9999999PiB", -1, 2**63, True, False, 1.5, 2e9, float("nan"), [1], object(), b"1"]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_nonsense_is_rejected_with_help(value):
    with pytest.raises(BudgetFormatError) as caught:
        parse_budget(value, lambda: 1000)
    message = str(caught.value)
    for part in (repr(value), "accepted:", '"20GiB"'):
        assert part in message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


LONG = {"text": "1" * 5000 + "GiB", "digits": "1" * 5000, "spaces": " " * 5000 + "1", "number": 10**5000,
        "negative": -(10**5000), "list": [10**99] * 99}  # fmt: skip


@pytest.mark.parametrize("value", LONG.values(), ids=list(LONG))
def test_nonsense_of_any_length_is_rejected_in_few_words(value):
    with pytest.raises(BudgetFormatError) as caught:
        parse_budget(value, unused)
    assert "accepted:" in str(caught.value) and len(str(caught.value)) < 400


@given(st.integers(0, 2**63 - 1))
def test_integers_are_themselves(count):
    assert parse_budget(count, unused) == count == parse_budget(str(count), unused)


@given(st.integers(0, 10**5), st.integers(0, 999), st.sampled_from(sorted(UNITS.keys() - {"", "B"})))
def test_decimals_are_exact_and_round_down(whole, thousandths, unit):
    exact = (Fraction(whole) + Fraction(thousandths, 1000)) * UNITS[unit]
    assert parse_budget(f"{whole}.{thousandths:03d}{unit}", unused) == exact.__floor__()


@given(st.integers(0, 100), st.integers(0, 2**62))
def test_percentage_never_exceeds_what_is_free(share, free):
    assert 0 <= parse_budget(f"{share}%", lambda: free) <= free


@given(st.text(max_size=12))
def test_any_text_gives_bytes_or_the_typed_error(text):
    try:
        count = parse_budget(text, lambda: 1000)
    except BudgetFormatError:
        return
    assert isinstance(count, int)
    assert 0 <= count < 2**63


@given(st.integers(0, 2**50))
def test_formatted_bytes_read_back_within_their_rounding(count):
    text = budget.format_bytes(count)
    assert abs(parse_budget(text, unused) - count) <= 0.006 * count


def test_available_bytes_are_sane(tmp_path):
    assert 0 < budget.available_host_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert budget.available_disk_bytes(tmp_path) >= 0
    with pytest.raises(OSError, match="missing"):
        budget.available_disk_bytes(tmp_path / "missing")


def test_cgroup_level_subtracts_cache_that_can_go(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    names = ("memory.max", "memory.current", "inactive_file")
    assert budget._read_level(tmp_path, *names) == (1000, 400)
    (tmp_path / "memory.max").write_text("max\n")
    assert budget._read_level(tmp_path, *names) is None


def test_the_cgroup_bounds_what_is_available(monkeypatch):
    monkeypatch.setattr(budget, "_cgroup_levels", lambda: [(5000, 1000), (3000, 2900)])
    assert budget.cgroup_limit_bytes() == 3000
    assert budget.available_host_bytes() == 100


def test_spill_dir_avoids_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(budget, "filesystem_of", lambda folder: "ext4")
    assert budget.default_spill_dir() == str(tmp_path)
    monkeypatch.setattr(budget, "filesystem_of", lambda folder: "tmpfs")
    assert budget.default_spill_dir() == "/var/tmp"


def test_filesystem_of_known_mounts():
    assert budget.filesystem_of("/proc/self") == "proc"
