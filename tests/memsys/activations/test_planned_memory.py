"""install_allocator: what torch would call, called as torch calls it, over the host's memory; and what is refused.

Each script has a process of its own, because an allocator is installed for good. On a GPU, torch itself calls.
"""

from __future__ import annotations

import json

import pytest
import torch
from fresh_process import output_of

import memsys
from memsys.errors import InputError, UnsupportedError
from memsys.planning.addresses import plan_addresses
from memsys.planning.trace import Request

PLAN = plan_addresses([Request(1024, 0, 2), Request(512, 1, 3), Request(1024, 4, 5)])

THROUGH_C = """
import ctypes, json
from memsys import _C
library = ctypes.CDLL(_C.__file__)
library.memsys_allocate.restype = ctypes.c_void_p
library.memsys_allocate.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
library.memsys_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
library.memsys_record_stream.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
library.memsys_base_allocation.restype = ctypes.c_void_p
library.memsys_base_allocation.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
assert not _C.is_allocator_installed() and _C.allocator_stats() == {}
runtime = _C.Runtime(_C.DeviceKind.SEAT)
_C.install_allocator(runtime, 0, [1024, 512, 1024], [0, 1024, 0], 1536)
try:
    _C.install_allocator(runtime, 0, [], [], 0)
except ValueError as error:
    assert "already" in str(error)
else:
    raise AssertionError("installed twice")
before = library.memsys_allocate(4096, 0, None)
first = None
for _ in range(3):
    _C.begin_allocator_step(0, 0)
    a = library.memsys_allocate(1024, 0, None)
    b = library.memsys_allocate(512, 0, None)
    library.memsys_record_stream(a, None)
    library.memsys_free(a, 1024, 0, None)
    c = library.memsys_allocate(1024, 0, None)
    first = first or a
    assert (a, b, c) == (first, first + 1024, first)
    size = ctypes.c_size_t()
    assert library.memsys_base_allocation(b + 5, ctypes.byref(size)) == first and size.value == 1536
    library.memsys_free(b, 512, 0, None)
    library.memsys_free(c, 1024, 0, None)
    _C.end_allocator_step(0)
other = library.memsys_allocate(1024, 0, None)
assert not first <= other < first + 1536
library.memsys_free(other, 1024, 0, None)
library.memsys_free(before, 4096, 0, None)
library.memsys_free(None, 0, 0, None)
library.memsys_reset()
print(json.dumps(_C.allocator_stats()))
"""

EXPORTS = """
import json, subprocess
from memsys import _C
lines = subprocess.check_output(["nm", "-D", "--defined-only", _C.__file__], text=True).splitlines()
print(json.dumps(sorted(line.split()[2] for line in lines if line.split()[1] == "T")))
"""

ON_GPU = """
import json, sys, torch, memsys
from torch import nn
from memsys.activations.allocations import record_allocations
from memsys.planning.addresses import AddressPlan, plan_addresses

def step(model, x):
    model(x).square().sum().backward()

def build():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(4)]).cuda()
    return model, torch.randn(256, 512, generator=torch.Generator().manual_seed(1)).cuda()

if sys.argv[1] == "record":
    model, x = build()
    step(model, x)
    model.zero_grad(set_to_none=True)
    with record_allocations(model) as record:
        step(model, x)
    plan_addresses(record.requests).save(sys.argv[2])
    print(json.dumps([p.grad.double().sum().item() for p in model.parameters()]))
else:
    memory = memsys.install_allocator(AddressPlan.load(sys.argv[2]))
    model, x = build()
    step(model, x)
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        with memory.step():
            step(model, x)
    grads = [p.grad.double().sum().item() for p in model.parameters()]
    print(json.dumps([grads, memsys.allocator_stats()[0]]))
"""


@pytest.mark.parametrize("seat", ["host", "simulated"])
def test_the_functions_torch_calls(seat: str) -> None:
    stats = json.loads(output_of(THROUGH_C.replace("SEAT", seat)))["0"]
    assert stats["hit_count"] == 9
    assert stats["miss_count"] == stats["live_bytes"] == 0
    assert stats["online_count"] == 2
    assert stats["reserved_bytes"] == 1536  # the pool's memory went back
    assert stats["upstream_count"] == 2


def test_only_these_are_exported() -> None:
    names = json.loads(output_of(EXPORTS))
    assert [name for name in names if name.startswith("memsys_")] == [
        "memsys_allocate", "memsys_base_allocation", "memsys_free", "memsys_record_stream", "memsys_refuse_fraction",
        "memsys_refuse_pool", "memsys_reset"]  # fmt: skip
    assert not [name for name in names if "cuda" in name.lower()]


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(InputError, match="found dict"):
        memsys.install_allocator({})
    with pytest.raises(InputError, match="alignment=512"):
        memsys.install_allocator(plan_addresses(PLAN.requests, alignment=64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        memsys.install_allocator(PLAN)
    assert memsys.allocator_stats() == {}


@pytest.mark.gpu
def test_a_gpu_step_is_served_as_recorded(tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    path = tmp_path / "step.json"
    wanted = json.loads(output_of(ON_GPU, "record", path))
    grads, stats = json.loads(output_of(ON_GPU, "serve", path))
    assert grads == wanted
    assert stats["miss_count"] == 0 and stats["hit_count"] > 0
