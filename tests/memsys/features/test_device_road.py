"""The gather on a GPU, where there is one; elsewhere what can be said of it without."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

import memsys  # noqa: E402

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_an_index_elsewhere_is_refused():
    table = memsys.HostTable(torch.zeros(4, 4))
    with pytest.raises(memsys.UnsupportedError, match="meta"):
        table.gather(torch.empty(3, dtype=torch.int64, device="meta"))


def test_the_report_counts_requests():
    report = memsys.HostTable(torch.zeros(50_000, 602)).report()
    assert report.base_offset_bytes == 0 and not report.is_adopted
    assert report.requests_per_row == report.least_requests_per_row < 20 < 36 < report.flat_requests_per_row
    assert "2408 bytes" in str(report)
    space = torch.zeros(10_000 * 128 + 32)
    shift = (64 - space.data_ptr()) % 128 // 4
    adopted = memsys.HostTable(space[shift : shift + 1_280_000].view(-1, 128), adopt=True).report()
    assert (adopted.base_offset_bytes, adopted.requests_per_row, adopted.flat_requests_per_row) == (64, 5, 8)


@pytest.mark.parametrize("elements", [1, 3, 25, 64, 100, 128, 301, 602, 1024, 4099])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("adopt", [False, True], ids=["own", "adopted"])
class TestRows:
    pytestmark = gpu

    def test_equal_indexing(self, elements, dtype, adopt):
        x = torch.randint(0, 100, (5000, elements)).to(dtype)
        table = memsys.HostTable(x, adopt=adopt)
        for index_dtype in (torch.int32, torch.int64):
            index = torch.randint(-5000, 5000, (7777,), dtype=index_dtype)
            rows = table.gather(index.cuda())
            assert rows.device.type == "cuda" and torch.equal(rows.cpu(), x[index.long()])


class TestWork:
    pytestmark = gpu

    def test_out_of_range_leaves_the_context_alive(self):
        table = memsys.HostTable(torch.ones(100, 64))
        index = torch.zeros(1000, dtype=torch.int64, device="cuda")
        index[700], index[900] = 100, -101
        with pytest.raises(memsys.RangeError, match="index 100 at position 700"):
            table.gather(index)
        assert table.gather(index[:700]).sum().item() == 700 * 64

    def test_prefetch_and_dropped_work(self):
        x = torch.randn(20_000, 256)
        table = memsys.HostTable(x)
        batches = [torch.randint(20_000, (4096,)) for _ in range(20)]
        for index, rows in zip(batches, memsys.prefetch(table, (one.cuda() for one in batches)), strict=True):
            table.gather_async(index.cuda())  # dropped at once
            assert torch.equal(rows.cpu(), x[index])

    def test_the_gradient_stays_on_the_host(self):
        x = torch.randn(1000, 32)
        table, twin = memsys.HostTable(x), x.clone().requires_grad_()
        index = torch.randint(1000, (500,))
        memsys.gather(table, index.cuda()).square().sum().backward()
        twin[index].square().sum().backward()
        assert table.parameter.grad.device.type == "cpu"
        torch.testing.assert_close(table.parameter.grad.to_dense(), twin.grad)
