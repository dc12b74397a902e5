"""The core's reader of weight files and its window of layers, as Python sees them."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memsys import _C, _tensor
from memsys.errors import BudgetError, CorruptionError, InputError

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


def layer_list(file: _C.WeightFile) -> list[list[tuple[_C.WeightFile, int, int]]]:
    """One layer a tensor, in the order of their names."""
    ordered = sorted(file.tensors, key=lambda one: one["name"])
    return [[(file, one["offset"], one["bytes"])] for one in ordered]


def value_of(lease: _C.LayerLease) -> torch.Tensor:
    return _tensor.tensor_over(lease.part(0), torch.float32, (3000 + lease.layer, 7))


def walk(store: _C.LayerStore, tensors: dict[str, torch.Tensor]) -> None:
    """A training step, which looks at every value."""
    there = [(index, _C.Visit.forward) for index in range(LAYERS)]
    back = [(index, _C.Visit.backward) for index in reversed(range(LAYERS))]
    for index, visit in there + back:
        assert torch.equal(value_of(store.acquire(index, visit)), tensors[f"layer.{index}"])


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_window_loads_what_it_must(runtime, path, tensors, window: int) -> None:
    layers = layer_list(_C.WeightFile(runtime, path))
    budget_bytes = window * _C.layer_slot_bytes(layers)
    store = _C.LayerStore(runtime, layers=layers, window_layers=window, device_budget_bytes=budget_bytes)
    assert store.window_layers == window and store.slot_bytes == _C.layer_slot_bytes(layers)
    walk(store, tensors)
    assert store.stats()["load_count"] == 2 * LAYERS - window
    walk(store, tensors)
    assert store.stats()["load_count"] == 4 * LAYERS - 3 * window
    runtime.drain()
    stats = store.stats()
    assert stats["in_flight_count"] == 0 and stats["hit_count"] > 0 and stats["stall_us"] > 0
    assert stats["resident_bytes"] == stats["peak_resident_bytes"] == budget_bytes
    assert stats["read_bytes"] >= stats["load_count"] * tensors["layer.0"].nbytes
    with pytest.raises(BudgetError, match=f"where {window - 1} would fit"):
        _C.LayerStore(runtime, layers=layers, window_layers=window, device_budget_bytes=budget_bytes - 1)


def test_a_tensor_keeps_its_lease(runtime, path, tensors) -> None:
    store = _C.LayerStore(runtime, layers=layer_list(_C.WeightFile(runtime, path)), window_layers=1)
    kept = value_of(store.acquire(1, _C.Visit.forward))
    gc.collect()
    with pytest.raises(BudgetError, match="layer 2 is wanted"):
        store.acquire(2, _C.Visit.forward)
    view = kept[5:]
    del kept
    with pytest.raises(BudgetError):
        store.acquire(2, _C.Visit.forward)
    assert torch.equal(view, tensors["layer.1"][5:])
    del view
    assert torch.equal(value_of(store.acquire(2, _C.Visit.forward)), tensors["layer.2"])
    last = value_of(store.acquire(3, _C.Visit.forward_only))
    del store
    assert torch.equal(last, tensors["layer.3"])


def test_threads_wait_without_the_interpreter(runtime, path, tensors) -> None:
    """Acquires of several threads, each of which may have to wait for what only another thread can begin."""
    store = _C.LayerStore(runtime, layers=layer_list(_C.WeightFile(runtime, path)), window_layers=3)
    wrong = []

    def use(first: int) -> None:
        for turn in range(100):
            lease = store.acquire((first + turn) % LAYERS, _C.Visit.forward_only)
            if not torch.equal(value_of(lease), tensors[f"layer.{lease.layer}"]):
                wrong.append(turn)
            del lease  # before the next is wanted: three threads, three slots

    threads = [threading.Thread(target=use, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and wrong == []


def test_what_makes_no_sense_is_refused(runtime, path) -> None:
    file = _C.WeightFile(runtime, path)
    with pytest.raises(InputError):
        _C.LayerStore(runtime, layers=[], window_layers=1)
    with pytest.raises(InputError):
        _C.LayerStore(runtime, layers=[[(file, 0, file.file_bytes + 1)]], window_layers=1)
    store = _C.LayerStore(runtime, layers=layer_list(file), window_layers=1)
    with pytest.raises(InputError, match="no layer 4"):
        store.acquire(4, _C.Visit.forward)
    lease = store.acquire(0, _C.Visit.forward)
    assert lease.part_count == 1
    with pytest.raises(InputError, match="no part 1"):
        lease.part(1)
