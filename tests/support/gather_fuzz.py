"""Seeded fuzz of the gather against torch's own x[index], byte for byte, so that NaN patterns count.

Tables, indices and outputs are drawn in every layout that a caller may bring: a wrong tail, stride, sign or alignment
in one of the copy loops shows here, and so does a byte written beside the output. A seed replays its failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402
from memsys import _tensor  # noqa: E402

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex128, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool,
]  # fmt: skip
GUARD_BYTES, GUARD = 192, 0xA5
PER_TABLE = 25
MANY = 0.0005  # of the gathers are large
FAR = [2**31 - 1, -(2**31), 2**31, 2**40, -(2**62), 2**63 - 1, -(2**63)]


class Source(NamedTuple):
    x: torch.Tensor
    adopt: bool


class Asked(NamedTuple):
    """An index in the form that a caller brings, and as int64 for torch; `flat`: gather takes it too."""

    given: object
    plain: torch.Tensor
    flat: bool


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    # A clone, since the strides of a tensor with one or no element may be anything.
    return tensor.resolve_conj().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def random_tensor(rng: random.Random, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits, NaNs of all kinds among them, often at a misaligned base."""
    count, off = int(np.prod(shape)), rng.choice([0, 0, 1, 3, 7])
    generator = np.random.default_rng(rng.getrandbits(32))
    bits = generator.integers(0, 2 if dtype is torch.bool else 256, (off + count + 1) * dtype.itemsize, np.uint8)
    return torch.from_numpy(bits).view(dtype)[off : off + count].reshape(shape)


def random_row_shape(rng: random.Random) -> tuple[int, ...]:
    kind = rng.randrange(12)
    if kind == 0:
        return ()
    if kind == 1:
        return rng.choice([(0,), (3, 0), (0, 2)])
    if kind == 2:
        return (rng.randint(1, 9), rng.randint(1, 9))
    return (rng.randint(71, 3000),) if kind == 3 else (rng.randint(1, 70),)


def random_source(rng: random.Random, dtype: torch.dtype) -> Source:
    row = random_row_shape(rng)
    width = int(np.prod(row))
    rows = rng.choice([0, 1, 2, rng.randint(3, 60), rng.randint(61, 61 + 40_000 // max(width, 20))])
    layout = rng.choice(["plain", "adopted", "transposed", "wide", "adopted wide", "stepped", "adopted stepped"])
    if layout == "transposed":
        return Source(random_tensor(rng, dtype, (*reversed(row), rows)).permute(*reversed(range(len(row) + 1))), False)
    if layout.endswith("wide") and len(row) == 1:
        begin = rng.randint(0, 5)
        wide = random_tensor(rng, dtype, (rows, begin + width + rng.randint(0, 5)))
        return Source(wide[:, begin : begin + width], layout == "adopted wide")
    if layout.endswith("stepped"):
        step = rng.randint(2, 3)
        return Source(random_tensor(rng, dtype, (rows * step, *row))[::step], layout == "adopted stepped")
    x = random_tensor(rng, dtype, (rows, *row))
    return Source(x.conj() if layout == "plain" and x.is_complex() else x, layout == "adopted")


def random_plain_index(rng: random.Random, x: torch.Tensor, many: float = MANY) -> torch.Tensor:
    rows, row_bytes = len(x), int(np.prod(x.shape[1:])) * x.element_size()
    count = min(rng.choice([0, 1, 2, rng.randint(3, 40), rng.randint(41, 200)]), 2 + 60_000 // max(row_bytes, 1))
    if rng.random() < many:
        count = (33 << 20) // max(row_bytes, 8)  # for several threads, and more than what is written past the caches
    if rows == 0 or count == 0:
        return torch.zeros(count, dtype=torch.int64)  # in an empty table, out of range
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    low, high = rng.choice([(0, rows), (-rows, rows), (-rows, 0), (0, 1), (rows - 1, rows), (0, min(3, rows))])
    index = torch.randint(low, high, (count,), generator=generator)
    if rng.random() < 0.15:
        bad = rng.choice([rows, -rows - 1, rows + rng.randint(1, 9), *FAR])
        index[rng.randrange(count)] = bad
    return index


def spread(rng: random.Random, index: torch.Tensor) -> torch.Tensor:
    """The same values, apart in memory."""
    step, begin = rng.randint(2, 4), rng.randint(0, 3)
    wide = torch.full((begin + step * len(index),), -(2**30), dtype=index.dtype)
    wide[begin::step] = index
    return wide[begin::step]


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def random_index(rng: random.Random, x: torch.Tensor) -> Asked:
    plain = random_plain_index(rng, x)
    # An integer must fit: what does not is an int64.
    fits = plain.numel() == 0 or bool((plain.abs() < 2**31).all() and (plain != -(2**63)).all())
    index = plain.to(rng.choice([torch.int32, torch.int64])) if fits else plain
    forms: dict[str, Callable[[], Asked]] = {
        "plain": lambda: Asked(index, plain, True),
        "spread": lambda: Asked(spread(rng, index), plain, True),
        "column": lambda: Asked(torch.stack([index, index - index], 1)[:, 0], plain, True),
        "array": lambda: Asked(index.numpy(), plain, True),
        "spread array": lambda: Asked(spread(rng, index).numpy(), plain, True),
        "reversed array": lambda: Asked(index.flip(0).numpy()[::-1], plain, True),
        "read-only array": lambda: Asked(read_only(index.numpy()), plain, True),
        "list": lambda: Asked(index.tolist(), plain, True),
    }
    if len(plain):
        forms["expanded"] = lambda: Asked(index[:1].expand(len(index)), plain[:1].expand(len(plain)), True)
        forms["one"] = lambda: Asked(index[0], plain[0], False)
        forms["nested"] = lambda: Asked([index.tolist()], plain[None], False)
    if len(plain) % 6 == 0:
        forms["matrix"] = lambda: Asked(index.reshape(2, -1, 3), plain.reshape(2, -1, 3), False)
        forms["turned"] = lambda: Asked(index.reshape(-1, 6).t(), plain.reshape(-1, 6).t(), False)
        forms["rows expanded"] = lambda: Asked(*(i[:, None].expand(-1, 3) for i in (index, plain)), False)
    if len(plain) > 5000:
        del forms["list"], forms["nested"]
    return rng.choice(list(forms.values()))()


def guarded(rng: random.Random, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """An output at any alignment, and the bytes around and in it, all GUARD."""
    count = int(np.prod(shape)) * dtype.itemsize
    begin = GUARD_BYTES + rng.choice([0, rng.randrange(64)]) * dtype.itemsize
    around = torch.full((begin + count + GUARD_BYTES,), GUARD, dtype=torch.uint8)
    return around[begin : begin + count].view(dtype).reshape(shape), around


def check_guarded(out: torch.Tensor, around: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether the output holds these rows, and nothing beside it was written."""
    count = out.numel() * out.element_size()
    begin = _tensor.pointer_of(out) - _tensor.pointer_of(around) if count else len(around)
    beside = torch.cat([around[:begin], around[begin + count :]])
    return torch.equal(raw_bytes(out), raw_bytes(wanted)) and bool((beside == GUARD).all())


def check_out_of_range(rng: random.Random, table: memsys.HostTable, x: torch.Tensor, asked: Asked) -> None:
    if x[:1].numel() or len(x) == 0:  # torch does not look where rows have no elements; a table always does
        with pytest.raises(IndexError):
            x[asked.plain]
    with pytest.raises(IndexError):
        table[asked.given]
    if asked.flat:
        out, around = guarded(rng, x.dtype, (len(asked.plain), *x.shape[1:]))
        with pytest.raises(memsys.RangeError):
            table.gather(asked.given, out=out)
        assert (around == GUARD).all()


def check_gather(rng: random.Random, table: memsys.HostTable, x: torch.Tensor) -> None:
    asked = random_index(rng, x)
    if bool(((asked.plain >= len(x)) | (asked.plain < -len(x))).any()):
        check_out_of_range(rng, table, x, asked)
        return
    wanted = x[asked.plain]
    if not asked.flat or rng.random() < 0.3:
        found = table[asked.given]
    elif rng.random() < 0.5:
        out, around = guarded(rng, x.dtype, wanted.shape)
        found = table.gather(asked.given, out=out)
        assert found is out
        assert check_guarded(out, around, wanted), "bytes beside out"
    else:
        found = table.gather(asked.given)
    assert found.shape == wanted.shape and found.dtype is wanted.dtype and found.is_contiguous()
    assert torch.equal(raw_bytes(found), raw_bytes(wanted))


def check_mask(rng: random.Random, table: memsys.HostTable, x: torch.Tensor) -> None:
    mask = torch.tensor([rng.random() < 0.4 for _ in range(len(x))], dtype=torch.bool)
    given = rng.choice([mask, spread_mask(mask), mask.numpy()])
    assert torch.equal(raw_bytes(table[given]), raw_bytes(x[mask]))


def spread_mask(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask, ~mask], 1)[:, 0]


def fuzz(seed: int, count: int) -> None:
    rng = random.Random(seed)
    for which in range(count // PER_TABLE):
        dtype = DTYPES[which % len(DTYPES)]
        source = random_source(rng, dtype)
        table = memsys.HostTable(source.x, adopt=source.adopt)
        try:
            for _ in range(PER_TABLE - 1):
                check_gather(rng, table, source.x)
            check_mask(rng, table, source.x)
        except BaseException as error:
            error.add_note(f"seed {seed}, table {which}: {source.x.shape} {source.x.stride()} {dtype}, {source.adopt=}")
            raise
