"""What time a step's compute has taken: the host's clock where torch is synchronous, events on the stream elsewhere.

A stamp is taken now and read after the step, so that nobody waits for the device while the step runs.
"""

from __future__ import annotations

import time

import torch


class HostClock:
    """For the CPU: a stamp is seconds."""

    def stamp(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        """Makes all stamps readable."""

    def between_us(self, begin: float, end: float) -> float:
        return (end - begin) * 1e6


class StreamClock:
    """For CUDA: a stamp is an event on the current stream, where the waits for transfers take place, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Makes all stamps readable: waits for the device."""
        torch.cuda.synchronize(self._device)

    def between_us(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) * 1e3


Clock = HostClock | StreamClock


def clock_for(device: torch.device) -> Clock:
    return StreamClock(device) if device.type == "cuda" else HostClock()
