"""Pages of a dead source go back to the system only when nobody else can reach the bytes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from built import needs_memsys

needs_memsys()

from memsys.activations.heap import HeapKeeper, HeapMode  # noqa: E402

COUNT = 1 << 20


def taken(tensor: torch.Tensor) -> HeapKeeper:
    keeper = HeapKeeper(HeapMode.DISCARD)
    keeper.take(tensor.untyped_storage())
    return keeper


def test_a_dead_source_is_discarded() -> None:
    tensor = torch.ones(COUNT)
    keeper = taken(tensor)
    del tensor
    keeper.give_back()
    assert keeper.discarded_bytes == 4 * COUNT


def test_a_source_in_use_keeps_its_bytes() -> None:
    tensor = torch.ones(COUNT)
    keeper = taken(tensor)
    view = tensor[5:]
    del tensor
    keeper.give_back()
    assert keeper.discarded_bytes == 0 and view.sum().item() == COUNT - 5
    del view
    keeper.give_back()
    assert keeper.discarded_bytes == 4 * COUNT


def test_a_source_whose_storage_python_holds_keeps_its_bytes() -> None:
    storage = torch.ones(COUNT).untyped_storage()
    keeper = HeapKeeper(HeapMode.DISCARD)
    keeper.take(storage)
    keeper.give_back()
    assert keeper.discarded_bytes == 0 and storage[4] == 0 and storage[3] == 63  # the bytes of 1.0


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
    keeper = taken(tensor)
    del tensor
    keeper.give_back()
    assert owner.sum() == COUNT


def test_the_bound_lets_go_of_sources_that_others_hold() -> None:
    keeper = HeapKeeper(HeapMode.DISCARD)
    tensors = [torch.ones(1024) for _ in range(200)]
    for tensor in tensors:
        keeper.take(tensor.untyped_storage())
        keeper.give_back()
    assert len(keeper._waiting) <= 33
