"""Where rows lie in a tensor and in its bytes, for the layouts that models save; against counting byte by byte."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

from memsys import _tensor  # noqa: E402
from memsys.activations.rows.geometry import RowDim, RowGeometry, first_rows, geometry_of  # noqa: E402

B, S, H, D = 2, 5, 3, 4


def fused(which: int) -> torch.Tensor:
    return torch.empty(B, S, 3 * H * D)[..., which * H * D : (which + 1) * H * D].view(B, S, H, D).transpose(1, 2)


def stacked(which: int) -> torch.Tensor:
    return torch.empty(3, S, B, H * D)[which].view(S, B * H, D).transpose(0, 1).view(B, H, S, D)


LAYOUTS = {
    "[B, S, h]": (lambda: torch.empty(B, S, H * D), RowDim(1, 1, 1), RowGeometry(B, S, H * D * 4)),
    "[S, B, h]": (lambda: torch.empty(S, B, H * D), RowDim(0, 1, 1), RowGeometry(1, S, B * H * D * 4)),
    "merged [B * S, h]": (lambda: torch.empty(B * S, H * D), RowDim(0, B, 1), RowGeometry(B, S, H * D * 4)),
    "merged [S * B, h]": (lambda: torch.empty(S * B, H * D), RowDim(0, 1, B), RowGeometry(1, S, B * H * D * 4)),
    "merged [B * S * H, D]": (lambda: torch.empty(B * S * H, D), RowDim(0, B, H), RowGeometry(B, S, H * D * 4)),
    "[B, H, S, D]": (lambda: torch.empty(B, H, S, D), RowDim(2, 1, 1), RowGeometry(B * H, S, D * 4)),
    "[B, H, S, D] of [B, S, H, D]": (
        lambda: torch.empty(B, S, H, D).transpose(1, 2), RowDim(2, 1, 1), RowGeometry(B, S, H * D * 4)
    ),
    "q of a fused projection": (lambda: fused(0), RowDim(2, 1, 1), RowGeometry(B, S, 3 * H * D * 4)),
    "v of a fused projection": (lambda: fused(2), RowDim(2, 1, 1), RowGeometry(B, S, 3 * H * D * 4)),
    "k of a stacked projection": (lambda: stacked(1), RowDim(2, 1, 1), RowGeometry(3, S, B * H * D * 4)),
    "statistics": (lambda: torch.empty(B, S, 1), RowDim(1, 1, 1), RowGeometry(B, S, 4)),
    "half precision": (lambda: torch.empty(B, S, D, dtype=torch.half), RowDim(1, 1, 1), RowGeometry(B, S, D * 2)),
    "expanded": (
        lambda: torch.empty(B, S, 1).expand(B, S, H), RowDim(1, 1, 1), RowGeometry(B, S, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rows_of_a_layout(name):
    build, row_dim, wanted = LAYOUTS[name]
    tensor = build()
    storage = _tensor.storage_of(tensor)
    found = geometry_of(_tensor.layout_of(tensor, 0), row_dim, storage.nbytes())
    assert found == wanted
    # The bytes of rows [first, S) of the tensor all lie in the rows [first, S) of the geometry, and no others do.
    marks = _tensor.bytes_over(storage).zero_()
    by_row = marks.view(found.outer, found.row_count, found.inner_bytes)
    for first in (0, 2, S - 1):
        marks.zero_()
        rows = row_dim.rows(tensor, first, S)
        torch.as_strided(rows, rows.shape, rows.stride(), rows.storage_offset()).view(rows.dtype)
        for index in torch.cartesian_prod(*(torch.arange(size) for size in rows.shape)).tolist():
            place = rows.storage_offset() + sum(i * s for i, s in zip(index, rows.stride(), strict=True))
            marks[place * tensor.element_size() : (place + 1) * tensor.element_size()] = 1
        assert not by_row[:, :first].any()
        assert by_row[:, first:].any(dim=2).any(dim=0).all()
    assert found.prefix_bytes(2) == 2 * found.row_bytes


@pytest.mark.parametrize(
    ("tensor", "row_dim", "begin", "bytes_"),
    [
        (torch.empty(B, S, D)[:, ::2], RowDim(1, 1, 1), 0, B * S * D * 4),  # rows that are not next to one another
        (torch.empty(B, D, S), RowDim(2, 1, 1), 0, B * D * S * 4 + 4),  # a part of a row at the end
        (torch.empty(S + 1, D)[1:], RowDim(0, 1, 1), 0, (S + 1) * D * 4),  # another tensor before it
        (torch.empty(1, 1, D).expand(1, S, D), RowDim(1, 1, 1), 0, D * 4),  # one row for all
        (torch.empty(60).as_strided((2, 5, 4), (22, 4, 1)), RowDim(1, 1, 1), 0, 240),  # a gap after the last row
        (torch.empty(B * S + 1, D), RowDim(0, B, 1), 0, (B * S + 1) * D * 4),
        (torch.empty(40)[:20].as_strided((2, 5, 2), (3, 4, 1)), RowDim(1, 1, 1), 0, 80),  # rows that overlap
    ],
)
def test_what_has_no_rows(tensor, row_dim, begin, bytes_):
    assert geometry_of(_tensor.layout_of(tensor, begin), row_dim, bytes_) is None


def test_first_rows_is_the_next_whole_number():
    assert [first_rows(number / 10, 10) for number in range(11)] == list(range(11))
    assert [first_rows(number / 10, 30) for number in range(11)] == list(range(0, 31, 3))
    assert first_rows(0.01, 10) == 1 and first_rows(0.999, 10) == 10 and first_rows(0.3, 7) == 3
