"""A swap-in under way, and the memory that it writes into.

The memory may not be used by anyone else before the transfer has ended, whatever becomes of the tensors that wanted
it, so the two live and die together here.
"""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger("memsys")


class Landing:
    """One arrival, into `target`, which is torch's memory, or if None into the store's own."""

    __slots__ = ("arrival", "store", "stream", "target")

    def __init__(self, store: object, arrival: object, stream: int, target: torch.UntypedStorage | None) -> None:
        self.store = store
        self.arrival = arrival
        self.stream = stream  # on which the target was allocated, and may be read
        self.target = target

    def __del__(self) -> None:
        # Torch may reuse a dropped target at once, so its stream first waits for the copy into it. The core keeps
        # memory of its own alive by itself.
        if self.target is None or self.arrival.is_done:
            return
        try:
            self.store.arrive(self.arrival, self.stream)
        except Exception:
            logger.debug("a transfer that nobody wanted any more failed", exc_info=True)
