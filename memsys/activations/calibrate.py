"""Measures what carries saved tensors on this machine while it computes, through the very engine that will do it.

On a CPU a transfer takes time from the cores that compute, besides what has to be waited for: it runs on them, and
touches fresh pages. So a small step is run both ways, kept and moved, and compute time is compared with compute time.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from memsys.activations.clock import HostClock
from memsys.activations.decision import KEEP
from memsys.activations.dispatcher import Dispatcher
from memsys.activations.layers import LayerPlace
from memsys.activations.recorder import MovedBytes, StepRecorder
from memsys.activations.session import OffloadOptions, Session
from memsys.planning.swap_plan import Hardware, Link
from memsys.report import links

_SPAN_BYTES = 4 << 20
_WIDTH = 256
_ROWS = _SPAN_BYTES // 4 // _WIDTH
_SPAN_COUNT = 24
_MOVED_BYTES = _SPAN_BYTES * (_SPAN_COUNT - 1)  # the first operation saves its input, a leaf, which stays
_ROUNDS = 3
_LONGEST_S = 4.0
_MOST_SLOWDOWN = 3.0

_measured: dict[tuple[str, int], Hardware] = {}


def measured_hardware(device: torch.device, spill_dir: str, window_bytes: int) -> Hardware:
    """The links below `device`, measured once a process and file system; takes some seconds then."""
    key = (device.type, os.stat(spill_dir).st_dev)
    if key not in _measured:
        _measured[key] = _measure_cuda(spill_dir) if device.type == "cuda" else Hardware(_measure_file(spill_dir))
    return replace(_measured[key], window_bytes=window_bytes)


def _measure_cuda(spill_dir: str) -> Hardware:
    in_rate, out_rate = links.measure_gpu_rates()
    file = links.measure_file_rates(spill_dir)
    return Hardware(Link(file.write_rate, file.read_rate), Link(out_rate, in_rate))


class _Chain(nn.Module):
    """Operations of which each saves one span; narrow products take about as long as the span's transfer."""

    def __init__(self, is_product: bool) -> None:
        super().__init__()
        weight = torch.eye(_WIDTH)
        self.weights = nn.ParameterList(weight.clone() for _ in range(_SPAN_COUNT if is_product else 0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.weights:
            for _ in range(_SPAN_COUNT):
                x = x.relu()
            return x
        for weight in self.weights:
            x = x @ weight
        return x


def _measure_file(spill_dir: str) -> Link:
    moving = Session(OffloadOptions(policy="all", spill_dir=spill_dir))
    keeping = Session(OffloadOptions(policy=lambda saved: KEEP, spill_dir=spill_dir))
    started = time.perf_counter()
    try:
        rates = [_rates(moving) for _ in range(_ROUNDS)]
        link = Link(max(rate for rate, _ in rates), max(rate for _, rate in rates))
        moved_us = _MOVED_BYTES * (1 / link.out_rate + 1 / link.in_rate) * 1e6
        kept_us, all_us = [], []
        for turn in range(_ROUNDS + 1):
            if turn == 1:  # the first touches memory that the others find
                kept_us.clear()
                all_us.clear()
            kept_us.append(_compute_us(keeping))
            all_us.append(_compute_us(moving))
            if turn > 0 and time.perf_counter() - started > _LONGEST_S:
                break
        # The least of each: what else disturbs the machine only adds.
        return replace(link, slowdown=min(_MOST_SLOWDOWN, max(0.0, (min(all_us) - min(kept_us)) / moved_us)))
    finally:
        moving.close()
        keeping.close()


def _input() -> Tensor:
    return torch.full((_ROWS, _WIDTH), 0.5, requires_grad=True)


def _rates(session: Session) -> tuple[float, float]:
    """(out, in) in bytes a second, in a step that does hardly anything but move."""
    begin = time.perf_counter()
    with session.forward(None):
        result = _Chain(is_product=False)(_input())
    session.drain()
    middle = time.perf_counter()
    result.sum().backward()
    return _MOVED_BYTES / (middle - begin), _MOVED_BYTES / (time.perf_counter() - middle)


def _compute_us(session: Session) -> float:
    """Compute time of a step of products, without what it waited for the session's transfers."""
    record = session.new_record(torch.device("cpu"))
    recorder = record.recorder = StepRecorder(HostClock(), LayerPlace(None), lambda: MovedBytes(0, 0))
    with Dispatcher(session.claimants(record)):
        result = _Chain(is_product=True)(_input())
    recorder.end_forward()
    result.sum().backward()
    trace = recorder.trace("cpu", None, {})
    return trace.forward_us + trace.backward_us
