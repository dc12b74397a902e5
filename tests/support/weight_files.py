"""Tensors of every dtype, and files broken in every way that a file can be, for the tests of packed weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
          torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
          torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
          torch.float8_e8m0fnu]  # fmt: skip


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bits at all, NaNs of every payload among them; a bool is 0 or 1."""
    count = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (bits & 1 if dtype is torch.bool else bits).view(dtype).reshape(shape)


def bits_of(tensor: Tensor) -> bytes:
    """The tensor's bytes in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits_of(found[name]) == bits_of(tensor), name


def every_kind() -> dict[str, Tensor]:
    """Each dtype in an odd shape, a scalar, tensors of no bytes, a page and a checksum unit exactly, and one more."""
    tensors = {f"layers.{place}.weight": random_bits((7, 13), dtype, place) for place, dtype in enumerate(DTYPES)}
    tensors["scalar"] = torch.tensor(3.5, dtype=torch.bfloat16)
    tensors["empty"] = torch.empty(0, 3)
    tensors["empty.last"] = torch.empty(5, 0, dtype=torch.int8)
    for size in (4095, 4096, 4097, 65535, 65536, 65537, 200_001):
        tensors[f"bytes.of{size}"] = random_bits((size,), torch.uint8, size)
    return tensors


class ReluBlock(nn.Module):
    """A feed-forward network by the names that OPT gives it."""

    def __init__(self, width: int, count: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, count)
        self.activation_fn = activation or nn.ReLU()
        self.fc2 = nn.Linear(count, width)


def relu_model(width: int = 24, count: int = 40, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An embedding, two ReLU blocks, a head; the same weights at every call."""
    torch.manual_seed(0)
    model = nn.Module()
    model.embed = nn.Embedding(11, width)
    model.layers = nn.ModuleList(ReluBlock(width, count) for _ in range(2))
    model.head = nn.Linear(width, 11, bias=False)
    return model.to(dtype)


def header_of(data: bytes) -> tuple[dict, int]:
    """The header, and the byte at which the tensors begin."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), end


def with_text(data: bytes, text: bytes) -> bytes:
    """The file with another header in the same place."""
    end = header_of(data)[1]
    assert len(text) <= end - 8
    return data[:8] + text.ljust(end - 8) + data[end:]


def edited(data: bytes, change: Callable[[dict], object]) -> bytes:
    """The file with its header changed in place by `change`."""
    header, _ = header_of(data)
    change(header)
    return with_text(data, json.dumps(header, separators=(",", ":")).encode())


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def first_tensor(data: bytes) -> tuple[str, int]:
    """The first tensor with bytes, and where they begin."""
    header, end = header_of(data)
    name, begin = min(((name, entry["data_offsets"][0]) for name, entry in header.items()
                       if name != "__metadata__" and entry["data_offsets"][0] < entry["data_offsets"][1]),
                      key=lambda pair: pair[1])  # fmt: skip
    return name, end + begin


def end_of(data: bytes, name: str) -> int:
    """The byte behind a tensor."""
    header, end = header_of(data)
    return end + header[name]["data_offsets"][1]


def _shift(header: dict, name: str, begin: int, end: int) -> None:
    old_begin, old_end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [old_begin + begin, old_end + end]


def _second_key(data: bytes) -> bytes:
    header, end = header_of(data)
    name, _ = first_tensor(data)
    text = data[8:end].rstrip()
    return with_text(
        data, text[:-1] + b"," + json.dumps(name).encode() + b":" + json.dumps(header[name]).encode() + b"}"
    )


def _metadata(key: str, change: Callable[[str], str | None]) -> Callable[[bytes], bytes]:
    def apply(header: dict) -> None:
        value = change(header["__metadata__"].pop(key))
        if value is not None:
            header["__metadata__"][key] = value

    return lambda data: edited(data, apply)


class Broken(NamedTuple):
    """`make` breaks a whole packed file; `stock_loads` says that the safetensors library opens it and returns every
    tensor as if nothing were wrong."""

    make: Callable[[bytes], bytes]
    stock_loads: bool


def _entry_of_first(data: bytes, change: Callable[[dict], object]) -> bytes:
    name, _ = first_tensor(data)
    return edited(data, lambda header: change(header[name]))


BROKEN: dict[str, Broken] = {
    "a bit flipped in a tensor": Broken(lambda data: flipped(data, first_tensor(data)[1] * 8 + 3), True),
    "a bit flipped in the last byte of a tensor": Broken(
        lambda data: flipped(data, end_of(data, "head.weight") * 8 - 1), True
    ),
    "a checksum changed": Broken(_metadata("memsys.crc", lambda text: "AAAA" + text[4:]), True),
    "the checksums lost": Broken(_metadata("memsys.crc", lambda text: None), True),
    "the layout changed": Broken(_metadata("memsys.layout", lambda text: text.replace("relu", "gelu")), True),
    "the header's checksum changed": Broken(_metadata("memsys.header_crc", lambda text: str(int(text) ^ 1)), True),
    "a name changed": Broken(lambda data: data.replace(b'"embed.weight"', b'"embad.weight"', 1), True),
    "a dtype changed": Broken(lambda data: _entry_of_first(data, lambda one: one.update(dtype="I32")), True),
    "a shape turned": Broken(lambda data: _entry_of_first(data, lambda one: one["shape"].reverse()), True),
    "a tensor named twice": Broken(_second_key, True),
    "an unknown field": Broken(lambda data: _entry_of_first(data, lambda one: one.update(crc="x")), True),
    "tensors that overlap": Broken(
        lambda data: edited(data, lambda header: _shift(header, "head.weight", -4096, -4096)), False
    ),
    "a hole between tensors": Broken(
        lambda data: edited(data, lambda header: header.pop("memsys.pad.0")), False
    ),
    "a shape that overflows": Broken(
        lambda data: _entry_of_first(data, lambda one: one.update(shape=[2**62, 2**62])), False
    ),
    "an offset below zero": Broken(lambda data: edited(data, lambda header: _shift(header, "head.weight", -(2**40), 0)),
                                   False),
    "an unknown dtype": Broken(lambda data: _entry_of_first(data, lambda one: one.update(dtype="Q3")), False),
    "the last page cut off": Broken(lambda data: data[:-4096], False),
    "cut within the header": Broken(lambda data: data[:100], False),
    "cut to nothing": Broken(lambda data: b"", False),
    "a page too long": Broken(lambda data: data + bytes(4096), False),
    "a header said to be of 2^40 bytes": Broken(lambda data: struct.pack("<Q", 2**40) + data[8:], False),
    "a header longer than the file": Broken(lambda data: struct.pack("<Q", 90_000_000) + data[8:], False),
    "a header of brackets": Broken(lambda data: with_text(data, b'{"a":' + b"[" * 2000), False),
    "a header that is no JSON": Broken(lambda data: with_text(data, b"{'a': 1}"), False),
    "a pickle": Broken(lambda data: b"\x80\x02}q\x00." + bytes(100), False),
}  # fmt: skip
