"""Packing and unpacking take the memory of the largest tensor, and leave the page cache to others."""

import ctypes
import mmap
import subprocess
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from safetensors.torch import save_file

needs_memsys()

from fresh_process import output_of  # noqa: E402

from memsys import pack_weights  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402

MEMORY = """
import gc, sys, torch
from memsys import pack_weights, unpack_weights
from memsys._tensor import pointer_of
def high():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
source, folder = sys.argv[1:3]
pack_weights({"a": torch.ones(4096)}, folder + "/warm.safetensors")
unpack_weights(folder + "/warm.safetensors", folder + "/warm2.safetensors")
open("/proc/self/clear_refs", "w").write("5")
before = high()
pack_weights(source, folder + "/packed.safetensors")
packed = high()
unpack_weights(folder + "/packed.safetensors", folder + "/plain.safetensors")
print(packed - before, high() - before)
"""


def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """192 MiB of tensors of 2 MiB each (a bundled network: 4 MiB in two parts); a whole copy would be seen at once."""
    tensors = {}
    for place in range(32):
        tensors[f"layers.{place}.fc1.weight"] = torch.full((1024, 512), float(place))
        tensors[f"layers.{place}.fc2.weight"] = torch.full((512, 1024), float(-place))
        tensors[f"layers.{place}.other.weight"] = torch.full((1024, 512), 0.5)
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"activation_function": "relu"}')
    del tensors
    grown = [int(kib) / 1024 for kib in output_of(MEMORY, tmp_path / "model", tmp_path).split()]
    assert len(open_weights(tmp_path / "packed.safetensors").bundles) == 32
    assert max(grown) < 48, f"grew by {grown} MiB"


def cached_pages(path: Path) -> int:
    """Pages of the file in the page cache."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as view:
        count = -(-len(view) // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * count)()
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        address = library.mmap(None, len(view), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        assert library.mincore(address, len(view), seen) == 0
        library.munmap(address, len(view))
        return sum(byte & 1 for byte in seen)


def test_the_page_cache_stays_free(tmp_path: Path) -> None:
    if "tmpfs" in subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True).stdout:
        pytest.skip("tmpfs is the page cache")
    pack_weights({str(place): torch.ones(2**20) for place in range(8)}, tmp_path / "a.safetensors")
    assert cached_pages(tmp_path / "a.safetensors") <= 64  # of 8192
