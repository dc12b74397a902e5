"""Feed-forward networks with ReLU whose rows are streamed: exact, since the resident projection's own sign says which.

After "LLM in a flash" (arXiv 2312.11514), in its exact form: an ungated network keeps `up` and reads the rows of `down`
that relu(up(x)) does not silence; a gated one keeps `gate` and reads rows of `up` and `down`. No neuron is missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memsys.errors import InputError
from memsys.weights.ffn_parts import WindowedDown, WindowedUp, join
from memsys.weights.ffn_rows import BundlePlace, KeepRule, RowPool, StreamedRows


class WindowedFFN(nn.Module):
    """A frozen feed-forward network with ReLU over a bundle: down(relu(up(x))), or down(relu(gate(x)) * up(x)).

    place: where the bundle lies. up or gate: the resident projection, an nn.Linear of the model that was packed; the
    other parts are streamed. layout: "zero_filled" (the dense kernel over a weight that is zero but for active rows,
    so torch.equal to the dense network) or "compacted" (only resident rows are multiplied: equal to rounding).
    policy: "window" (rows of the last `window_tokens` calls stay), "hot" (the ids in `hot` stay once they came),
    "window+hot", or "lru" (those used last). A call with several tokens counts as one and needs the rows that any of
    them needs; more rows than there is room for are brought in several goes, which is right and slow. capacity_rows:
    how many stay at most; or device_budget: bytes for rows, staging and scratch. pool: shared by several networks,
    instead of a budget.

    x: (..., d) -> (..., d) in the dtype of the file, on the CPU, for inference. Raises BudgetError, CorruptionError
    and SpillError; after an error the next call is right again.
    """

    def __init__(
        self,
        place: BundlePlace,
        *,
        up: nn.Linear | None = None,
        gate: nn.Linear | None = None,
        up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
        layout: str = "zero_filled",
        policy: str = "window",
        window_tokens: int = 4,
        hot: Sequence[int] = (),
        capacity_rows: int | None = None,
        device_budget: int | str | None = None,
        pool: RowPool | None = None,
    ) -> None:
        super().__init__()
        if (up is None) == (gate is None):
            raise InputError("WindowedFFN: wanted one resident projection, `up` of an ungated network or `gate` of a "
                             f"gated one, found {'neither' if up is None else 'both'}; pass one")  # fmt: skip
        resident = up if gate is None else gate
        if tuple(resident.weight.shape) != (place.rows, place.columns) or resident.weight.dtype is not place.dtype:
            raise InputError(f"WindowedFFN: wanted a projection of {[place.rows, place.columns]}, {place.dtype}, "
                             f"found {list(resident.weight.shape)}, {resident.weight.dtype}; pass the packed "
                             "one")  # fmt: skip
        self.resident, self.is_gated = resident, gate is not None
        rule = KeepRule(policy, window_tokens, tuple(hot))
        parts = ("up", "down") if self.is_gated else ("down",)
        pool = pool or RowPool(device_budget=device_budget, max_row_bytes=place.stride_bytes)
        if layout == "zero_filled":  # before rows take the rest of the budget
            for part in parts:
                pool.scratch(part, place, is_by_row=part == "up")
        capacity = pool.capacity_for([place], len(parts)) if capacity_rows is None else capacity_rows
        rows = StreamedRows(pool, place, parts, capacity_rows=capacity, rule=rule)
        self.up = WindowedUp(rows, layout=layout, bias=up_bias, is_by_row=True) if self.is_gated else None
        self.down = WindowedDown(rows, layout=layout, bias=down_bias, is_by_row=False, gated=self.up)
        join(self.up, self.down)

    def forward(self, x: Tensor) -> Tensor:
        h = self.resident(x)
        if self.up is None:
            return self.down(torch.relu(h))
        self.up.note_gate(h)
        return self.down(torch.relu(h) * self.up(x))

    def stats(self) -> dict[str, int]:
        """What the store counts: bytes read and wanted, reads, rows that came, left and moved, time by kind."""
        return self.down.rows.stats()
