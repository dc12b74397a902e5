"""Checksums of memory, unit by unit: what files of weights carry."""

import pytest
import torch
from built import needs_memsys
from hypothesis import given, settings
from hypothesis import strategies as st

needs_memsys()

from memsys import _C, InputError  # noqa: E402


@given(st.integers(0, 300_000), st.sampled_from([1, 7, 512, 4096, 65536, 2**62]), st.integers(0, 2**30))
@settings(max_examples=60)
def test_checksums_of_units(size: int, unit_bytes: int, seed: int) -> None:
    if unit_bytes == 1:
        size %= 100
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = _C.crc32c_units(data.data_ptr(), size, unit_bytes)
    text = data.numpy().tobytes()
    wanted = [_C.crc32c(text[begin : begin + unit_bytes]) for begin in range(0, size, unit_bytes)]
    assert found == b"".join(value.to_bytes(4, "little") for value in wanted)


@pytest.mark.parametrize(("size", "unit_bytes"), [(-1, 8), (8, 0), (8, -8)])
def test_units_that_make_no_sense(size: int, unit_bytes: int) -> None:
    with pytest.raises(InputError, match="crc32c_units"):
        _C.crc32c_units(0, size, unit_bytes)
