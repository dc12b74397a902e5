"""Recording a step's allocations: every result is there with its size, its life, its layer and its phase."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memsys._cuda_memory import events_of
from memsys.activations.allocations import AllocationRecord, _read_history, _Whereabouts, live_peak, record_allocations
from memsys.errors import UnsupportedError
from memsys.planning.trace import Request


class Stack(nn.Module):
    def __init__(self, count: int = 3, again: bool = False) -> None:
        super().__init__()
        self.begin = nn.Linear(8, 16)
        layers = [nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(count)]
        self.layers = nn.ModuleList(layers)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.begin(x)
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.again else layer(x))
        return x


def test_lives_of_plain_operations() -> None:
    x = torch.ones(256)
    with record_allocations() as record:
        a = x + 1  # event 0
        b = a.view(16, 16).t()  # no memory of its own
        c = a * 2  # event 1
        del a, b  # event 2
        c.mul_(2)
        d = c.double()  # event 3
        del c  # event 4
    assert record.requests == (Request(1024, 0, 2), Request(1024, 1, 4), Request(2048, 3, 5))
    assert record.peak_bytes == 3072
    assert record.event_count == 5
    assert record.transients == record.requests[:2]  # d outlives the recording
    del d
    assert record.requests[2].end == 5


def test_addresses_used_again_are_new_requests() -> None:
    x = torch.ones(1000)
    with record_allocations() as record:
        for _ in range(5):
            (x + 1).sum()
    assert [request.bytes for request in record.requests] == [4000, 4] * 5
    assert live_peak(record.requests) <= 4004


@pytest.mark.parametrize("again", [False, True])
def test_forward_and_backward_of_a_stack(again: bool) -> None:
    torch.manual_seed(0)
    model, x = Stack(again=again), torch.randn(4, 8)
    model(x).sum().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    with record_allocations(model) as record:
        loss = model(x).sum()
        loss.backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), wanted, strict=True))
    found = {(request.layer, request.phase) for request in record.requests}
    # Within `begin`, the loss and the residual sums no layer runs.
    assert found == {(layer, phase) for layer in (-1, 0, 1, 2) for phase in ("forward", "backward")}
    order = [request.layer for request in record.requests if request.layer >= 0]
    there = order.index(2) if again else len(order) // 2
    assert order[:there] == sorted(order[:there])
    last = [request for request in record.requests if request.end == record.event_count]
    grads = sum(parameter.nbytes for parameter in model.parameters())
    assert sum(request.bytes for request in last) == grads + loss.nbytes
    assert all(0 <= request.begin < request.end <= record.event_count for request in record.requests)
    first = record.requests[0]
    assert first.bytes == 4 * 16 * 4 and first.phase == "forward" and first.layer == -1
    assert record.peak_bytes >= grads


def test_layers_alike_ask_alike() -> None:
    model, x = Stack(4), torch.randn(4, 8)
    with record_allocations(model) as record:
        model(x).sum().backward()
    for phase in ("forward", "backward"):
        sizes = [sorted(r.bytes for r in record.requests if (r.layer, r.phase) == (layer, phase)) for layer in (1, 2)]
        assert sizes[0] == sizes[1]


def test_what_a_subclass_holds_is_seen() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    pair = TwoTensor(torch.ones(64), torch.ones(64))
    with record_allocations() as record:
        result = pair + 1
    assert [request.bytes for request in record.requests] == [256, 256]
    del result


def test_nothing_is_left_behind() -> None:
    model = Stack()
    with pytest.raises(ZeroDivisionError), record_allocations(model):
        raise ZeroDivisionError
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    y = torch.ones(4) + 1
    with record_allocations() as record:
        pass
    del y
    assert record.requests == ()


def test_other_devices_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="meta"), record_allocations(device="meta"):
        pass


def test_history_of_a_device_becomes_requests() -> None:
    """The history as CUDA's allocator tells it, which needs a GPU to be recorded but none to be read."""
    where, record = _Whereabouts(None), AllocationRecord()
    where._set(0)
    at = where.history[0][0]
    trace = [
        {"action": action, "addr": address, "size": size, "stream": stream, "time_us": at + late}
        for action, address, size, stream, late in [
            ("free_requested", 7, 512, 0, -2),  # allocated before the recording
            ("segment_alloc", 1, 2 << 20, 0, -1),
            ("alloc", 1, 512, 0, -1),
            ("alloc", 2, 1024, 94_000, 1),
            ("free_requested", 1, 512, 0, 2),
            ("free_completed", 1, 512, 0, 2),
            ("alloc", 1, 2048, 0, 3),
        ]
    ]
    _read_history(record, where, events_of(trace))
    assert record.requests == (Request(512, 0, 2), Request(1024, 1, 4, 1, 0), Request(2048, 3, 4, 0, 0))
