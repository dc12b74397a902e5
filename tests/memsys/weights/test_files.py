"""Broken files: each is refused with a typed error that names the file, and gives nothing.

Beside it stands what the safetensors library of the stated version does; docs/weights-files.md shows the same.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from built import needs_memsys
from safetensors.torch import load_file, save_file
from sources import ROOT
from weight_files import BROKEN, assert_same_bits, first_tensor, flipped, header_of, relu_model

needs_memsys()

from memsys import _C, CorruptionError, SpillError, pack_weights, runtimes, unpack_weights  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402

STOCK_VERSION = "0.8"
TABLE = (ROOT / "docs" / "weights-files.md").read_text()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    pack_weights(relu_model(), path)
    return path.read_bytes()


def read_all(path: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(path)
    return {name: weights.read(name) for name in weights.entries}


def test_the_whole_file_is_read(packed: bytes, tmp_path: Path) -> None:
    """What the broken ones are made from is right: else all would be refused for the same wrong reason."""
    path = tmp_path / "whole.safetensors"
    path.write_bytes(packed)
    assert len(read_all(path)) == 12


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused(kind: str, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BROKEN[kind].make(packed))
    with pytest.raises(CorruptionError, match=r"broken\.safetensors"):
        read_all(path)
    target: dict[str, torch.Tensor] = {}
    with pytest.raises(CorruptionError, match=r"broken\.safetensors"):
        unpack_weights(path, target)
    assert target == {}
    with pytest.raises(CorruptionError, match=r"broken\.safetensors"):
        unpack_weights(path, tmp_path / "plain.safetensors")
    with pytest.raises(CorruptionError, match=r"broken\.safetensors"):
        pack_weights(path, tmp_path / "again.safetensors")
    assert os.listdir(tmp_path) == ["broken.safetensors"]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_the_stock_library_does(kind: str, packed: bytes, tmp_path: Path) -> None:
    if not safetensors.__version__.startswith(STOCK_VERSION):
        pytest.skip(f"the table is of safetensors {STOCK_VERSION}, found {safetensors.__version__}")
    path = tmp_path / "broken.safetensors"
    path.write_bytes(BROKEN[kind].make(packed))
    if BROKEN[kind].stock_loads:
        assert load_file(path)
    else:
        with pytest.raises(safetensors.SafetensorError):
            load_file(path)


@pytest.mark.parametrize("kind", BROKEN)
def test_the_documentation_shows_it(kind: str) -> None:
    said = "returns every tensor" if BROKEN[kind].stock_loads else "raises `SafetensorError`"
    assert f"| {kind} | `CorruptionError` | {said} |" in TABLE


SIGBUS = """
import os, sys
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as file:
    os.truncate(sys.argv[1], 4096)
    print(file.get_tensor("head.weight").sum())
"""


def test_a_mapped_file_that_is_cut_kills_its_reader(packed: bytes, tmp_path: Path) -> None:
    """Why nothing here maps a file: this is what the stock library's reader dies of."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed)
    done = subprocess.run([sys.executable, "-c", SIGBUS, path], capture_output=True, timeout=120)
    if not safetensors.__version__.startswith(STOCK_VERSION):
        pytest.skip(f"the table is of safetensors {STOCK_VERSION}, found {safetensors.__version__}")
    assert done.returncode == -signal.SIGBUS, done


def test_a_flipped_bit_is_named(packed: bytes, tmp_path: Path) -> None:
    """File, tensor, and the byte from which the checksum covers it."""
    name, offset = first_tensor(packed)
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(flipped(packed, offset * 8 + 12))
    weights = open_weights(path)
    with pytest.raises(CorruptionError) as caught:
        weights.read(name)
    assert str(path) in str(caught.value) and repr(name) in str(caught.value) and str(offset) in str(caught.value)
    assert weights.read("head.weight").shape == (11, 24)  # the others are as they were
    assert open_weights(path, verify="never").read(name).shape == (11, 24)


def test_a_bundle_is_checked_to_its_padding(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(flipped(packed, len(packed) * 8 - 1))
    weights = open_weights(path)
    with pytest.raises(CorruptionError, match=r"flipped\.safetensors.*layers\.1\.memsys_bundle"):
        weights.read("layers.1.memsys_bundle")
    assert weights.read("layers.0.memsys_bundle").shape == (40, 1024)


def test_every_bit_of_the_header_counts(packed: bytes, tmp_path: Path) -> None:
    """A bit of each byte of length and text, and of some of the padding, that turns over is seen at opening."""
    _, end = header_of(packed)
    text_end = len(packed[:end].rstrip())
    path = tmp_path / "flipped.safetensors"
    seen = 0
    for byte in [*range(text_end), *range(text_end, end, 29)]:
        bit = byte * 8 + byte * 5 % 8  # all eight in turn
        path.write_bytes(flipped(packed, bit))
        with pytest.raises(CorruptionError, match=r"flipped\.safetensors"):
            open_weights(path)
        seen += 1
    assert seen > 2000


def test_verify_always_sees_what_first_has_seen_whole(packed: bytes, tmp_path: Path) -> None:
    """The same inode, size and time, other bytes: only reading again can tell."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed)
    name, offset = first_tensor(packed)
    weights = open_weights(path, verify="always")
    weights.read(name)
    state = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(CorruptionError, match=r"model\.safetensors"):
        weights.read(name)


@pytest.mark.parametrize("change", ["cut", "grown", "rewritten"])
def test_a_file_that_changes_under_us(change: str, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed)
    weights = open_weights(path)
    with open(path, "r+b") as file:
        if change == "cut":
            file.truncate(len(packed) - 4096)
        elif change == "grown":
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        else:
            file.write(packed)
    os.utime(path, (1, 1))
    with pytest.raises(CorruptionError, match=r"model\.safetensors"):
        weights.read("embed.weight")


FAULTS = {
    "io_error": SpillError,
    "corrupt": CorruptionError,
    "truncated": CorruptionError,
    "interrupted": None,
    "again": None,
    "short_transfer": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails(fault: str, tmp_path: Path) -> None:
    """What the disk did is told, with file and tensor, and nothing is left; what can be completed is."""
    path = tmp_path / "model.safetensors"
    model = relu_model(width=64)  # the first tensor reaches the middle of its page, where a bit turns over
    pack_weights(model, path)
    runtime = _C.Runtime(_C.DeviceKind.host, faults=_C.FaultSeam.faulty)
    runtimes.override_runtime(runtime)
    try:
        runtime.arm_io(_C.IoFault.__members__[fault], 0)
        error = FAULTS[fault]
        if error is None:
            unpack_weights(path, tmp_path / "plain.safetensors")
            assert_same_bits(load_file(tmp_path / "plain.safetensors"), model.state_dict())
            return
        with pytest.raises(error, match=r"model\.safetensors', tensor 'embed\.weight'"):
            unpack_weights(path, tmp_path / "plain.safetensors")
        assert os.listdir(tmp_path) == ["model.safetensors"]
    finally:
        runtimes.override_runtime(None)


def shards(folder: Path) -> Path:
    """A folder of two shards with an index, as save_pretrained writes them."""
    folder.mkdir()
    tensors = {name: tensor.detach() for name, tensor in relu_model().state_dict().items()}
    halves = [dict(list(tensors.items())[:4]), dict(list(tensors.items())[4:])]
    names = [f"model-0000{place}-of-00002.safetensors" for place in (1, 2)]
    index = {}
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(half, name)
    write_index(folder, index)
    return folder


def write_index(folder: Path, index: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def read_index(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_whole_shards_are_read(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    assert set(read_all(folder)) == set(relu_model().state_dict())
    assert set(read_all(folder / "model.safetensors.index.json")) == set(relu_model().state_dict())


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SpillError, match=r"model-00002-of-00002.*missing.*'layers\.0\.fc2\.bias'"):
        open_weights(folder)


def test_a_tensor_that_its_shard_lacks(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    write_index(folder, read_index(folder) | {"lost": "model-00001-of-00002.safetensors"})
    with pytest.raises(CorruptionError, match=r"model-00001-of-00002.*'lost'.*nowhere"):
        open_weights(folder)


def test_a_tensor_in_another_shard(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    write_index(folder, read_index(folder) | {"head.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CorruptionError, match=r"model-00001-of-00002.*'head.weight'.*model-00002-of-00002"):
        open_weights(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    twice = load_file(folder / "model-00002-of-00002.safetensors") | {"embed.weight": torch.zeros(1)}
    save_file(twice, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CorruptionError, match=r"model-00002-of-00002.*'embed.weight'.*model-00001-of-00002"):
        open_weights(folder)
