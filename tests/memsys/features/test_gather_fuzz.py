"""The gather is torch's own x[index], byte for byte, for whatever tables and indices are drawn, by every copy loop."""

from __future__ import annotations

import random

import pytest
from built import needs_memsys

needs_memsys()

from gather_fuzz import (  # noqa: E402
    DTYPES,
    GUARD,
    check_guarded,
    fuzz,
    guarded,
    random_plain_index,
    random_source,
)  # fmt: skip

import memsys  # noqa: E402
from memsys import _C, _tensor  # noqa: E402


@pytest.mark.parametrize("seed", range(4))
def test_gather_is_indexing(seed):
    fuzz(seed, 5_000)


@pytest.mark.parametrize("backend", _C.row_copy_backends())
def test_every_backend(backend):
    rng = random.Random(backend)
    for _ in range(600):
        source = random_source(rng, rng.choice(DTYPES))
        if len(source.x) == 0:
            continue
        table, x = memsys.HostTable(source.x, adopt=source.adopt), source.x
        index = random_plain_index(rng, x, many=0.1)
        is_bad = (index >= len(x)) | (index < -len(x))
        out, around = guarded(rng, x.dtype, (len(index), *x.shape[1:]))
        found = table._core.gather(
            _tensor.pointer_of(index), _C.IndexType.int64, len(index), _tensor.pointer_of(out),
            rng.choice([1, 2, 3]), backend=backend,
        )  # fmt: skip
        assert found == (int(is_bad.nonzero()[0]) if is_bad.any() else -1)
        assert (around == GUARD).all() if is_bad.any() else check_guarded(out, around, x[index])
