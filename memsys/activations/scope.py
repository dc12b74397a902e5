"""The scope form of offload: `with memsys.offload_activations() as session: loss = f(x)`."""

from __future__ import annotations

import os
from contextlib import ExitStack

from memsys.activations.policy import Policy
from memsys.activations.session import OffloadOptions, Session
from memsys.activations.stats import OffloadStats


class offload_activations:
    """Offloads what autograd saves inside the scope, the loss included; backward may run inside or outside.

    Same keywords as memsys.offload. May be entered again, also while open. A frozen weight that no module of
    memsys.offload announces is taken for an activation: it is moved, and correct, but nothing is gained.
    """

    def __init__(
        self,
        device_budget: int | str | None = None,
        host_budget: int | str | None = None,
        disk_budget: int | str | None = None,
        spill_dir: str | os.PathLike | None = None,
        policy: str | Policy = "auto",
        plan: object = None,
        min_bytes: int | None = None,
        exclude: tuple[str, ...] = (),
        return_memory: bool = False,
        verify: bool = False,
    ) -> None:
        self.session = Session(OffloadOptions(device_budget, host_budget, disk_budget, spill_dir, policy, plan,
                                               min_bytes, exclude, return_memory, verify))  # fmt: skip
        self._open: list[ExitStack] = []

    def __enter__(self) -> offload_activations:
        stack = ExitStack()
        stack.enter_context(self.session.forward(None))
        self._open.append(stack)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.pop().__exit__(*error)

    def stats(self) -> OffloadStats:
        """What was moved so far."""
        return self.session.stats()

    def drain(self) -> None:
        """Waits until nothing is under way."""
        self.session.drain()
