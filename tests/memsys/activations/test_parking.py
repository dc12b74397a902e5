"""A source is parked, without its pages, only when nobody else can reach its bytes, and until the next forward."""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402
from memsys import _C  # noqa: E402
from memsys.activations.heap import resident_bytes  # noqa: E402
from memsys.activations.mover import Mover  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402
from memsys.activations.parking import ParkingLot  # noqa: E402
from memsys.runtimes import override_runtime  # noqa: E402

COUNT = 1 << 20


def taken(tensor: torch.Tensor) -> ParkingLot:
    lot = ParkingLot()
    lot.take(tensor.untyped_storage())
    return lot


def test_a_dead_source_is_parked() -> None:
    tensor = torch.ones(COUNT)
    lot = taken(tensor)
    del tensor
    lot.park_dead()
    assert lot.parked_bytes == 4 * COUNT


def test_a_source_in_use_keeps_its_bytes() -> None:
    tensor = torch.ones(COUNT)
    lot = taken(tensor)
    view = tensor[5:]
    del tensor
    lot.park_dead()
    assert lot.parked_bytes == 0 and view.sum().item() == COUNT - 5
    del view
    lot.park_dead()
    assert lot.parked_bytes == 4 * COUNT


def test_a_source_whose_storage_python_holds_keeps_its_bytes() -> None:
    storage = torch.ones(COUNT).untyped_storage()
    lot = ParkingLot()
    lot.take(storage)
    lot.park_dead()
    assert lot.parked_bytes == 0 and storage[4] == 0 and storage[3] == 63  # the bytes of 1.0


def foreign_numpy() -> tuple[torch.Tensor, np.ndarray]:
    array = np.ones(COUNT, dtype=np.float32)
    return torch.from_numpy(array), array


def foreign_buffer() -> tuple[torch.Tensor, np.ndarray]:
    buffer = bytearray(np.ones(COUNT, dtype=np.float32).tobytes())
    return torch.frombuffer(buffer, dtype=torch.float32), np.frombuffer(buffer, dtype=np.float32)


def foreign_ctypes() -> tuple[torch.Tensor, np.ndarray]:
    block = (ctypes.c_float * COUNT)(*([1.0] * COUNT))
    return torch.frombuffer(block, dtype=torch.float32), np.frombuffer(block, dtype=np.float32)


def shared() -> tuple[torch.Tensor, np.ndarray]:
    tensor = torch.ones(COUNT).share_memory_()
    return tensor, tensor.numpy()


@pytest.mark.parametrize("make", [foreign_numpy, foreign_buffer, foreign_ctypes, shared])
def test_memory_of_others_keeps_its_bytes(make) -> None:
    """The tensor dies, but the bytes belong to somebody who still reads them."""
    tensor, owner = make()
    lot = taken(tensor)
    del tensor
    lot.park_dead()
    assert owner.sum() == COUNT


def test_pinned_memory_keeps_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pinned memory, which a machine without a GPU can't have."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.UntypedStorage, "is_pinned", lambda storage: True)
    tensor = torch.ones(COUNT)
    lot = taken(tensor)
    del tensor
    lot.park_dead()
    assert lot.parked_bytes == 0 and len(lot._waiting) == 1


def test_the_bound_lets_go_of_sources_that_others_hold() -> None:
    lot = ParkingLot()
    tensors = [torch.ones(1024) for _ in range(200)]
    for tensor in tensors:
        lot.take(tensor.untyped_storage())
        lot.park_dead()
    assert len(lot._waiting) <= 33


def test_a_parked_source_has_no_pages_and_keeps_its_addresses() -> None:
    begin_bytes = resident_bytes()
    tensor = torch.ones(16 * COUNT)
    address = tensor.data_ptr()
    lot = taken(tensor)
    del tensor
    lot.park_dead()
    assert resident_bytes() - begin_bytes < 8 * COUNT < 64 * COUNT == lot.parked_bytes
    others = [torch.empty(16 * COUNT) for _ in range(4)]
    assert all(other.data_ptr() != address for other in others)


def test_the_next_forward_frees_what_is_parked_and_forgets_what_others_hold() -> None:
    dead, held = torch.ones(COUNT), torch.ones(COUNT)
    lot = taken(dead)
    lot.take(held.untyped_storage())
    del dead
    lot.begin_backward()
    assert lot.parked_bytes == 4 * COUNT and not lot._waiting
    lot.begin_forward()
    assert lot.parked_bytes == 0 and held.sum().item() == COUNT


def test_training_parks_sources_until_the_next_forward() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
    data = torch.randn(1024, 512)
    memsys.offload(model, policy="all")
    try:
        model(data).relu().sum().backward()
        session = session_of(model)
        session.drain()
        parked = [weakref.ref(source) for source in session._parking._parked]
        assert sum(source().nbytes() for source in parked) >= 2 * data.nbytes
        loss = model(data).relu().sum()
        assert all(source() is None for source in parked)
        loss.backward()
    finally:
        memsys.restore(model)
    assert session._parking.parked_bytes == 0


@pytest.fixture
def seeded():
    """A function seed -> None: the host serves tensors on that seed's schedule from then on."""
    yield lambda seed: override_runtime(_C.Runtime(_C.DeviceKind.host, seed=seed, io=_C.IoEngineChoice.threads))
    override_runtime(None)


def differing_seeds(seeded) -> int:
    """How many of ten schedules give a gradient other than that of training without memsys."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(6)))
    data = torch.randn(128, 512)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(data).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    wanted = gradients()
    differing = 0
    for seed in range(10):
        seeded(seed)
        memsys.offload(model, policy="all", min_bytes=1)
        differing += not all(all(map(torch.equal, gradients(), wanted)) for _ in range(2))
        memsys.restore(model)
    return differing


def test_every_schedule_is_exact(seeded) -> None:
    assert differing_seeds(seeded) == 0


def test_a_source_parked_before_its_bytes_left_is_seen(seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the source is dropped, and its pages discarded, while its bytes are still to be written."""
    monkeypatch.setattr(Mover, "hold", lambda mover, span: mover._drop_source(span))
    assert differing_seeds(seeded) == 10
