"""The core's reader of weight files and its window of layers, as Python sees them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memsys import _C, _tensor
from memsys.errors import CorruptionError, InputError

LAYERS = 4


@pytest.fixture
def runtime() -> _C.Runtime:
    return _C.Runtime(_C.DeviceKind.host)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{index}": torch.randn(3000 + index, 7, generator=generator) for index in range(LAYERS)}


@pytest.fixture
def path(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> str:
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return str(tmp_path / "model.safetensors")


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_a_file_tells_its_tensors(runtime: _C.Runtime, path: str, tensors: dict[str, torch.Tensor]) -> None:
    file = _C.WeightFile(runtime, path)
    assert file.metadata == {"format": "pt"}
    assert file.file_bytes == Path(path).stat().st_size
    assert {one["name"] for one in file.tensors} == set(tensors)
    content = Path(path).read_bytes()
    for one in file.tensors:
        wanted = tensors[one["name"]]
        assert one["dtype"] == "F32" and one["shape"] == list(wanted.shape) and one["bytes"] == wanted.nbytes
        assert content[one["offset"] : one["offset"] + one["bytes"]] == bytes_of(wanted)


def test_ranges_are_read_to_an_address(runtime: _C.Runtime, path: str, tensors: dict[str, torch.Tensor]) -> None:
    file = _C.WeightFile(runtime, path, verify=_C.Verify.always, use_direct_io=False)
    for one in file.tensors:
        found = torch.empty(one["shape"])
        file.read(one["offset"], one["bytes"], _tensor.pointer_of(found))
        assert torch.equal(found, tensors[one["name"]])
    assert file.read_bytes >= sum(one["bytes"] for one in file.tensors) and file.read_count >= LAYERS
    assert not file.is_direct
    with pytest.raises(InputError, match="not all in"):
        file.read(file.file_bytes, 1, _tensor.pointer_of(torch.empty(1)))


def pages_file(path: Path) -> tuple[int, bytes]:
    """A file of one tensor of 5 pages that begins at a page; the offset and bytes of that tensor."""
    content = bytes(range(256)) * 80
    header = b'{"a":{"dtype":"U8","shape":[20480],"data_offsets":[0,20480]}}'.ljust(4088)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return 4096, content


def test_checksums_are_compared(runtime: _C.Runtime, tmp_path: Path) -> None:
    offset, content = pages_file(tmp_path / "a.safetensors")
    units = [content[at : at + 8192] for at in range(0, len(content), 8192)]
    values = np.array([_C.crc32c(unit) for unit in units], dtype="<u4").tobytes()
    target = torch.empty(len(content), dtype=torch.uint8)
    file = _C.WeightFile(runtime, str(tmp_path / "a.safetensors"))
    file.set_checksums(offset, len(content), 8192, values)
    file.read(offset, len(content), _tensor.pointer_of(target))
    assert bytes_of(target) == content
    other = _C.WeightFile(runtime, str(tmp_path / "a.safetensors"))
    other.set_checksums(offset, len(content), 8192, values[:-4] + b"\0\0\0\0")
    other.read(offset, 100, _tensor.pointer_of(target))
    with pytest.raises(CorruptionError, match=rf"a\.safetensors', tensor 'a', byte {offset + 16384}: .* found"):
        other.read(offset + 16384, 1, _tensor.pointer_of(target))
    with pytest.raises(InputError, match="4 bytes each"):
        other.set_checksums(offset, 1, 4096, b"abc")
    with pytest.raises(InputError, match="wanted 1 values, found 2"):
        other.set_checksums(offset, 1, 4096, b"12345678")


def test_a_changed_file_is_refused(runtime: _C.Runtime, path: str) -> None:
    file = _C.WeightFile(runtime, path)
    with Path(path).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CorruptionError, match="its size went from"):
        file.read(file.tensors[0]["offset"], 4, _tensor.pointer_of(torch.empty(1)))
    with pytest.raises(CorruptionError):
        _C.WeightFile(runtime, path)
