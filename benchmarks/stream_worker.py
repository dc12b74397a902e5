"""One way of fine-tuning a model by adapters, in a process of its own: reads lines, does a step for each, and tells
what it took. `bench_stream.py` starts several and has them step in turn.

The frozen weights are resident, streamed by memsys, mapped from the file (safetensors, torch), or offloaded to disk by
accelerate, one hook a Linear.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import sys
import tempfile
import time
from pathlib import Path

import torch

from memsys.cli.peak import PeakGrowth


class Lora(torch.nn.Module):
    """A frozen Linear and an adapter of rank 8 beside it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.base = torch.nn.Linear(width_in, width_out, bias=False)
        self.adapter_a = torch.nn.Parameter(torch.empty(8, width_in))
        self.adapter_b = torch.nn.Parameter(torch.empty(width_out, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.adapter_a.t()) @ self.adapter_b.t()


class Block(torch.nn.Module):
    """Attention and a gated MLP, as in Llama, without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_b = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.query, self.value = Lora(width, width), Lora(width, width)
        self.key = torch.nn.Linear(width, width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.gate = torch.nn.Linear(width, 3 * width, bias=False)
        self.up = torch.nn.Linear(width, 3 * width, bias=False)
        self.down = torch.nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_a(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm_b(x)
        return x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))


class Stack(torch.nn.Module):
    """The blocks; `seed` decides every weight."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(width, max(1, width // 64)) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.float().square().mean()


def frozen_weights(layers: int, width: int, dtype: torch.dtype):
    """Every frozen weight in turn, so that the file can be written without the model in memory."""
    with torch.device("meta"):
        model = Stack(layers, width).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, like in model.named_parameters():
        if "adapter" not in name:
            scale = 1.0 if like.dim() == 1 else width**-0.5
            value = torch.ones(like.shape) if like.dim() == 1 else torch.randn(like.shape, generator=generator) * scale
            yield name, value.to(dtype)


def give_adapters(model: Stack, dtype: torch.dtype) -> None:
    """Adapters are small, and the same in every mode."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, Lora):
            for name in ("adapter_a", "adapter_b"):
                like = getattr(module, name)
                value = torch.randn(like.shape, generator=generator).mul(0.01).to(dtype)
                setattr(module, name, torch.nn.Parameter(value))


def build(mode: str, path: str, layers: int, width: int, dtype: torch.dtype, folder: str) -> Stack:
    with torch.device("meta"):
        model = Stack(layers, width).to(dtype)
    give_adapters(model, dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    if mode.startswith("memsys"):
        import memsys

        return memsys.stream(model, path, window=int(mode.removeprefix("memsys-")))
    place_weights(model, path, is_mapped=mode == "mmap")
    if mode == "accelerate":
        offload_to_disk(model, folder)
    return model


def place_weights(model: Stack, path: str, is_mapped: bool) -> None:
    from safetensors import safe_open

    # The default backend maps the file; reading (pread) copies it.
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  the file is no dictionary
            if name.startswith("memsys."):
                continue
            value = file.get_tensor(name) if is_mapped else file.get_tensor(name).clone()
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._parameters[last] = torch.nn.Parameter(value, requires_grad=False)


def offload_to_disk(model: Stack, folder: str) -> None:
    from accelerate import disk_offload

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            disk_offload(module, str(Path(folder) / name), execution_device=torch.device("cpu"))


def cached_bytes(path: str) -> int:
    """How much of the file is in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        with mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            # ctypes takes an address from a writable buffer only, so the mapping's comes by way of torch.
            address = torch.frombuffer(memoryview(mapped), dtype=torch.uint8)
            pages = (ctypes.c_ubyte * ((size + 4095) // 4096))()
            status = libc.mincore(ctypes.c_void_p(address.data_ptr()), ctypes.c_size_t(size), pages)
            found = sum(page & 1 for page in pages) * 4096 if status == 0 else -1
            del address
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--file", required=True)
    for name in ("layers", "width", "batch", "seq"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory(dir=Path(arguments.file).parent) as folder:
        growth = PeakGrowth(torch.device("cpu"))
        model = build(arguments.mode, arguments.file, arguments.layers, arguments.width, dtype, folder)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(arguments.batch, arguments.seq, arguments.width, generator=generator).to(dtype)
        print(json.dumps({"built": True}), flush=True)
        losses: list[float] = []
        seconds: list[float] = []
        for line in sys.stdin:
            if line.strip() == "end":
                break
            begin = time.perf_counter()
            loss = model(x)
            loss.backward()
            model.zero_grad()
            seconds.append(time.perf_counter() - begin)
            losses.append(loss.item())
            print(json.dumps({"seconds": seconds[-1]}), flush=True)
        told = {"mode": arguments.mode, "seconds": seconds, "losses": losses, "growth_bytes": growth.growth_bytes()}
        told["cached_bytes"] = cached_bytes(arguments.file)
        if arguments.mode.startswith("memsys"):
            import memsys

            told["stats"] = memsys.stream_stats(model).as_dict()
        print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
