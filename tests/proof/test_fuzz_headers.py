"""Fuzz of what is believed of a file: headers of .safetensors and .npy files, and the checksums of weight files.

No input may crash a sanitized parser, be accepted with tensors that overlap or leave the file, or read differently once
written again (tests/csrc/fuzz has the targets). What is accepted, the formats' own libraries read alike; what only
memsys refuses is refused for a reason listed here.
"""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import fuzzing
import numpy as np
import proof
import pytest
import safetensors
from built import needs_memsys

needs_memsys()

from memsys import _C  # noqa: E402
from memsys.errors import CorruptionError  # noqa: E402

pytestmark = pytest.mark.proof

TARGETS = {"header": 1.0, "units": 0.05}  # the share of the inputs
SEED, SEEDS_IN_EARNEST, INPUTS_IN_EARNEST = 20_000, 10, 10_000_000
# Where memsys is stricter than the formats' own libraries, which take what is refused for these reasons.
STRICTER = {
    "safetensors": [
        r"wanted every (key|field)\b.* once",  # one of two readings
        r'wanted "dtype", "shape" or "data_offsets"',  # a field that nobody here understands
        r"wanted a name without control characters",
        r"wanted at most 64 dimensions",  # torch's own limit
        r"wanted a dtype of whole bytes that is known here",  # F4, F6: no tensor of torch has such elements
        r"wanted a size that fits 64 bits",  # behind a dimension of 0; strides would overflow
    ],
    "npy": [
        r"wanted every key once",
        r"wanted little-endian numbers",
        r"wanted one plain type",  # fields of a structured array
        r"wanted a numeric descr",  # text and dates; NumPy's other spellings of a type
        # NumPy reads any Python literal: 1_000, 0x10, True for 1, (3) + (), 'f' 'oo', comments.
        r"wanted (a count|a whole number|a string|a string without escapes|True or False|'\W'( or '\W')?),",
    ],
}


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_parser(target: str, tmp_path: Path) -> None:
    """The size of CI: a fixed seed over the kept corpus."""
    assert fuzzing.is_sanitized(target)
    told = fuzzing.fuzz(target, tmp_path, "--seconds", str(12 * TARGETS[target] + 2), "--seed", str(SEED), timeout=150)
    assert told["runs"] > 1000 and told["edges"] > 300 and told["kept"] > 50, told


@pytest.mark.parametrize("path", sorted(fuzzing.CORPUS.glob("*/*")), ids=lambda path: path.name)
def test_the_corpus_passes(path: Path) -> None:
    """Every input that once broke something, and one of each kind."""
    assert fuzzing.replay(path.parent.name, path).returncode == 0


@pytest.mark.parametrize("target", TARGETS)
def test_one_seed_is_one_sequence(target: str, tmp_path: Path) -> None:
    """The same seed draws the same inputs, and they grow from what they reach."""
    first, again, other = (fuzzing.fuzz(target, tmp_path, "--runs", "1500", "--seed", seed, timeout=150)
                           for seed in ("7", "7", "8"))  # fmt: skip
    del first["seconds"], again["seconds"], other["seconds"]
    assert first == again and first["kept"] > 20
    assert {**first, "seed": 8} != other


def kinds_of(path: Path, content: bytes) -> list[tuple[str, str]]:
    """What memsys makes of a file: (name, facts) of each tensor; a refusal is a CorruptionError."""
    path.write_bytes(content)
    found = _C.WeightFile(_C.Runtime(_C.DeviceKind.host), str(path)).tensors
    return sorted((one["name"], f"{one['dtype']} {one['shape']} {one['bytes']}") for one in found)


def stock_kinds(path: Path, content: bytes) -> list[tuple[str, str]]:
    """The same by safetensors, or NumPy. Raises whatever they raise."""
    if content.startswith(b"\x93NUMPY"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 2 wrote long numbers, which NumPy still takes
            array = np.load(path, allow_pickle=False)
        return [("", f"{array.dtype.str} {list(array.shape)} {array.nbytes}")]
    found = safetensors.deserialize(content)
    return sorted((name, f"{one['dtype']} {list(one['shape'])} {len(one['data'])}") for name, one in found)


NPY = {"<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64", "<c16": "C128", "|b1": "BOOL", "|u1": "U8", "|i1": "I8",
       "<u2": "U16", "<i2": "I16", "<u4": "U32", "<i4": "I32", "<u8": "U64", "<i8": "I64"}  # fmt: skip


def padded(content: bytes) -> list[bytes]:
    """The input, and with data after it for each size that its header may mean."""
    sizes = {int(number) for number in re.findall(rb"\d{1,4}", content)}
    length = int.from_bytes(content[:8], "little")
    head = content[: 8 + length] if length < len(content) else content
    return [content, *(head + bytes(size) for size in sorted(sizes)[-3:])]


def compare(path: Path, content: bytes) -> str:
    """Which of both readers took it: "both", "neither" or "stock"; fails where only memsys did, or where
    it refuses for a reason that is not listed."""
    try:
        ours = kinds_of(path, content)
    except CorruptionError as error:
        try:
            stock_kinds(path, content)
        except Exception:
            return "neither"
        reasons = STRICTER["npy" if content.startswith(b"\x93NUMPY") else "safetensors"]
        if not any(re.search(reason, str(error)) for reason in reasons):
            pytest.fail(f"memsys alone refuses {content!r}: {error}")
        return "stock"
    try:
        stock = stock_kinds(path, content)
    except Exception as error:
        pytest.fail(f"memsys alone accepts {content!r}: {error!r}")
    known = [(name, re.sub(r"^\S+", lambda kind: NPY.get(kind[0], kind[0]), facts)) for name, facts in stock]
    assert ours == known, content
    return "both"


def count_agreements(folder: Path, runs: int, seed: int) -> dict[str, int]:
    """How many inputs each reader took, of every 25th that is drawn."""
    emitted = folder / "emitted"
    emitted.mkdir()
    fuzzing.fuzz("header", folder, "--runs", str(runs), "--seed", str(seed), "--emit", str(emitted), timeout=3000)
    counts = {"both": 0, "neither": 0, "stock": 0}
    for path in sorted([*emitted.iterdir(), *(fuzzing.CORPUS / "header").iterdir()]):
        for content in padded(path.read_bytes()):
            counts[compare(folder / "file", content)] += 1
    return counts


def test_the_formats_own_libraries_agree(tmp_path: Path) -> None:
    counts = count_agreements(tmp_path, 5_000, SEED)
    assert counts["both"] > 30 and counts["neither"] > 100, counts


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_ten_million_inputs(tmp_path: Path) -> None:
    """In earnest: ten seeds of a million, and what the formats' own libraries say of one in 250."""
    begin, runs = time.monotonic(), {}
    for target, share in TARGETS.items():
        count = int(INPUTS_IN_EARNEST * share / SEEDS_IN_EARNEST)
        told = [fuzzing.fuzz(target, tmp_path, "--runs", str(count), "--seed", str(seed), timeout=3 * 3600)
                for seed in range(SEEDS_IN_EARNEST)]  # fmt: skip
        runs[target] = {"inputs": sum(int(one["runs"]) for one in told), "edges": max(one["edges"] for one in told)}
    counts = count_agreements(tmp_path, 500_000, SEED)
    inputs = sum(one["inputs"] for one in runs.values())
    proof.record("R7", "headers", measure="header inputs without crash, overlap or a difference once written again",
                 figure=f"{runs['header']['inputs']:,} headers, {runs['units']['inputs']:,} checksum layouts",
                 target=f"{INPUTS_IN_EARNEST:,}", is_met=inputs >= INPUTS_IN_EARNEST, seconds=time.monotonic() - begin,
                 seeds=list(range(SEEDS_IN_EARNEST)), targets=runs, agreement=counts,
                 corpus=len(list(fuzzing.CORPUS.glob("*/*"))), sanitizers="address,undefined")  # fmt: skip
