"""What a gather from a table costs, in the model's terms: requests to host memory a row, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memsys import _C

if TYPE_CHECKING:
    from memsys.features.table import HostTable

_LINE_BYTES = 128
_SAMPLE_COUNT, _SAMPLE_BYTES = 2000, 16 << 20
_FAR_APART = 1 << 32  # as if the table had so many rows: no two of the sample are neighbours


@dataclass(frozen=True)
class TableReport:
    """A table's layout, and requests a random row on a GPU: of the aligned kernel, of one with flat lanes (as torch's
    index_select), and the least there can be."""

    row_count: int
    row_bytes: int
    base_offset_bytes: int  # of the table's base in its 128-byte line
    is_adopted: bool
    requests_per_row: float
    flat_requests_per_row: float
    least_requests_per_row: float
    pool_bytes: int
    backend: str  # of the CPU gather

    def __str__(self) -> str:
        where = "adopted where it lay" if self.is_adopted else "memory of its own"
        return (
            f"{self.row_count} rows of {self.row_bytes} bytes, {where}, base {self.base_offset_bytes} bytes into a "
            f"128-byte line\nrequests a row on a GPU (model): {self.requests_per_row:.2f}, flat lanes "
            f"{self.flat_requests_per_row:.2f}, least {self.least_requests_per_row:.2f}\n"
            f"CPU gather: {self.backend}; {self.pool_bytes / 2**20:.1f} MiB of pooled outputs"
        )


def report_of(table: HostTable, core: object, is_adopted: bool, pool_bytes: int) -> TableReport:
    """The report of a table of any size; it reads no row."""
    base = core.address % _LINE_BYTES
    stride_bytes = table.tensor.stride(0) * table.tensor.element_size() if len(table) else table.row_bytes
    sample_count = max(8, min(_SAMPLE_COUNT, _SAMPLE_BYTES // max(table.row_bytes, 1)))
    requests = _C.count_requests(table.row_bytes, max(stride_bytes, table.row_bytes), base, _FAR_APART, sample_count, 0)
    return TableReport(
        row_count=len(table),
        row_bytes=table.row_bytes,
        base_offset_bytes=base,
        is_adopted=is_adopted,
        requests_per_row=requests["aligned"],
        flat_requests_per_row=requests["flat"],
        least_requests_per_row=requests["least"],
        pool_bytes=pool_bytes,
        backend=_C.row_copy_backends()[0],
    )
