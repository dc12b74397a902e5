"""The projections of a windowed feed-forward network whose weights are in a file: `down`, and `up` behind a gate.

Each stands in for an nn.Linear (or transformers' Conv1D) of the model, whose own code goes on calling it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memsys.errors import DtypeError, InputError, UnsupportedError
from memsys.weights.ffn_rows import LAYOUTS, DenseScratch, StreamedRows, active_ids, expect_only


class Streamed(nn.Module):
    """A projection whose weight is in the file. `is_by_row`: the dense weight has a neuron a row, else a column."""

    def __init__(
        self,
        rows: StreamedRows,
        part: str,
        *,
        layout: str,
        bias: Tensor | None,
        is_by_row: bool,
        is_conv1d: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f"layout: wanted one of {', '.join(LAYOUTS)}, found {layout!r}")
        self.rows, self.part, self.layout, self.name = rows, part, layout, name or part
        self.is_by_row, self.is_conv1d = is_by_row, is_conv1d
        place = rows.place
        self.weight_shape = place.dense_shape(is_by_row)
        sizes = self.weight_shape if is_conv1d else self.weight_shape[::-1]
        self.in_features, self.out_features = sizes
        if bias is not None and (tuple(bias.shape) != sizes[1:] or bias.dtype is not place.dtype):
            raise InputError(f"{self.name}.bias: wanted {list(sizes[1:])} of {place.dtype}, found {list(bias.shape)} "
                             f"of {bias.dtype}; take the bias of the model that was packed")  # fmt: skip
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._scratch: DenseScratch | None = None
        if layout == "zero_filled":
            self._scratch = rows.pool.scratch(part, place, is_by_row)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight, on the meta device: its bytes are in the file."""
        return torch.empty(self.weight_shape, dtype=self.rows.place.dtype, device="meta")

    def extra_repr(self) -> str:
        core = self.rows.core
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"layout={self.layout}, rows={core.capacity_rows} of {self.rows.place.rows}")  # fmt: skip

    def dense(self, x: Tensor) -> Tensor:
        """The dense kernel over the scratch: as the module that was replaced computes it."""
        weight = self._scratch.weight
        if not self.is_conv1d:
            return F.linear(x, weight, self.bias)
        flat = x.view(-1, x.shape[-1])
        product = flat @ weight if self.bias is None else torch.addmm(self.bias, flat, weight)
        return product.view(*x.shape[:-1], self.out_features)

    def check_input(self, x: Tensor) -> None:
        """Raises UnsupportedError for a gradient or a device, DtypeError for a dtype that is not served."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(f"{self.name}: rows are streamed for inference, and the input requires grad; run "
                                   "under torch.no_grad(), or train with memsys.stream, by layers")  # fmt: skip
        if x.device.type != "cpu":
            raise UnsupportedError(f"{self.name}: rows are streamed to host memory, and the input is on {x.device}; "
                                   "keep this network on the cpu")  # fmt: skip
        if x.dtype is not self.rows.place.dtype:
            raise DtypeError(f"{self.name}: wanted an input of {self.rows.place.dtype}, as the file's weight is, found "
                             f"{x.dtype}; convert the model, or pack it in that dtype")  # fmt: skip

    def _save_to_state_dict(self, *_: object) -> None:
        raise UnsupportedError(f"{self.name}.weight is in the file it is streamed from, not in the model; copy that "
                               "file, or take the state_dict before streaming")  # fmt: skip


class WindowedDown(Streamed):
    """down(h) for an h that is mostly 0: only the rows of neurons that are not are read.

    h: (..., n) -> (..., d), inference only. layout "zero_filled": torch.equal to the dense module; "compacted": equal
    to rounding, and only resident rows are multiplied.
    """

    def __init__(self, rows: StreamedRows, *, gated: WindowedUp | None = None, **options: object) -> None:
        super().__init__(rows, "down", **options)
        self._up = (gated,)  # not a submodule of this one

    def forward(self, h: Tensor) -> Tensor:
        self.check_input(h)
        with self.rows.pool.lock, torch.no_grad():
            ids = self._ids(h)
            if self.layout == "compacted":
                return self._compacted(h, ids)
            if self._scratch.owner is not self:  # a gated network's `up` has filled it, unless another came between
                fill(self.rows, ids, {"down": (self._scratch, self)})
            self._scratch.owner = None  # filled for this call
            return self.dense(h)

    def _ids(self, h: Tensor) -> Tensor:
        up = self._up[0]
        if up is None:
            return active_ids(h)
        ids = up.take_ids()
        expect_only(h, ids, self.name)
        return ids

    def _compacted(self, h: Tensor, ids: Tensor) -> Tensor:
        down = self.rows.matrix_of("down")
        neurons = self.rows.resident(ids)
        if neurons is not None:
            out = h[..., neurons] @ down[: len(neurons)]
        else:
            # Parts of a sum: added in a wider format, so that several goes round no more often than one.
            wide = torch.float32 if h.dtype.itemsize < 4 else h.dtype
            out = h.new_zeros(*h.shape[:-1], self.rows.place.columns, dtype=wide)
            for some, rows in self.rows.goes(ids):
                out += (h[..., some] @ down[rows]).to(wide)
            out = out.to(h.dtype)
        return out if self.bias is None else out + self.bias


class WindowedUp(Streamed):
    """up(x) of a gated network, right only where its gate is open; elsewhere the gate silences it.

    x: (..., d) -> (..., n). The gate must have been computed before, on the same x.
    """

    def __init__(self, rows: StreamedRows, **options: object) -> None:
        super().__init__(rows, "up", **options)
        self._down: tuple[WindowedDown, ...] = ()
        self._open: Tensor | None = None
        self._used: Tensor | None = None

    def note_gate(self, gate: Tensor) -> None:
        """Takes the gate's value before its ReLU; a neuron is silent where that is 0 or less for every token."""
        flat = gate.detach().reshape(-1, gate.shape[-1])
        self._open = (~(flat <= 0)).any(0).nonzero().flatten()

    def take_ids(self) -> Tensor:
        """The neurons of the up(x) that was computed last; once."""
        ids, self._used = self._used, None
        if ids is None:
            raise InputError(f"{self.name}: down(x) was called without up(x) before; stream the rows of networks that "
                             "compute down(relu(gate(x)) * up(x)) alone")  # fmt: skip
        return ids

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        ids, self._open = self._open, None
        if ids is None:
            raise InputError(f"{self.name}: up(x) was called without its gate before; stream the rows of networks that "
                             "compute the gate first")  # fmt: skip
        with self.rows.pool.lock, torch.no_grad():
            out = self._compacted(x, ids) if self.layout == "compacted" else self._zero_filled(x, ids)
        self._used = ids
        return out

    def _zero_filled(self, x: Tensor, ids: Tensor) -> Tensor:
        targets = {"up": (self._scratch, self)}
        for down in self._down:  # both parts have come, so both are put in place
            targets["down"] = (down._scratch, down)
        fill(self.rows, ids, targets)
        return self.dense(x)

    def _compacted(self, x: Tensor, ids: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:-1], self.rows.place.rows)
        up = self.rows.matrix_of("up")
        for some, rows in self.rows.goes(ids):
            out[..., some] = F.linear(x, up[rows], None if self.bias is None else self.bias[some])
        return out


def fill(rows: StreamedRows, ids: Tensor, targets: dict[str, tuple[DenseScratch, object]]) -> None:
    """Brings `ids` and puts them, by part, into scratch that is zero elsewhere and then belongs to the owner given."""
    for scratch, _ in targets.values():
        scratch.empty()
    for some, places in rows.goes(ids):
        for part, (scratch, _) in targets.items():
            scratch.put(some, rows.matrix_of(part)[places])
    for scratch, owner in targets.values():
        scratch.owner = owner


def join(up: WindowedUp | None, down: WindowedDown) -> None:
    """Lets a gated network's `up` put the rows of `down` in place as they come."""
    if up is not None:
        up._down = (down,)
