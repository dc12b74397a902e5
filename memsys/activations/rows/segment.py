"""One call of a block, kept so that it can be run again on its last rows: what its divided spans own together.

It holds handles on the call's arguments and on its attention outputs, and knows its spans only weakly: the graph owns
the spans, they own this.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from memsys import _tensor
from memsys.activations.dispatcher import Handle
from memsys.activations.rows.arguments import rebuilt
from memsys.activations.rows.fingerprint import modes
from memsys.activations.rows.geometry import LEAST_ROWS, RowDim
from memsys.activations.rows.profile import RowProfile
from memsys.activations.rows.rerun import Rerun, Sample
from memsys.activations.span import MovedHandle, PassedHandle, SavedSpan, check_version
from memsys.errors import CorruptionError

if TYPE_CHECKING:
    from memsys.activations.mover import Mover
    from memsys.activations.rows.prefix import RowLanding


class Write(NamedTuple):
    """Where a saved tensor's rows go when they are made again; `layout` counts from the span's begin."""

    span: weakref.ref[SavedSpan]
    layout: _tensor.Layout
    row_dim: RowDim
    sample: Sample | None


class Segment:
    """See above. `rows`: [0, rows) of `row_count` are swapped, for every span of the segment."""

    def __init__(self, block: torch.nn.Module, profile: RowProfile, row_count: int, rows: int) -> None:
        self.block = block
        self.profile = profile
        self.row_count = row_count
        self.rows = rows
        self.begin = min(rows, row_count - LEAST_ROWS)  # a re-run's first row
        self.writes: dict[int, Write] = {}  # by the index of the saved tensor
        self.attention: dict[int, MovedHandle | PassedHandle] = {}
        self._autocast = _autocast_states()
        self._modes = modes(block)
        self._states = [(tensor, _tensor.version_of(tensor)) for tensor in (*block.parameters(), *block.buffers())]

    def hold(self, skeleton: tuple[tuple, dict], handles: Sequence[Handle], needs_grad: Sequence[bool]) -> None:
        """The call's arguments, as handles."""
        self.skeleton, self.inputs, self.needs_grad = skeleton, tuple(handles), tuple(needs_grad)

    def remake(self, mover: Mover, stream: int) -> dict[SavedSpan, RowLanding]:
        """Room for every span of the segment, their first rows on the way, their other rows computed. The spans have
        their landings only once all went well."""
        self._check_unchanged()
        landings = {span: self._landing(mover, span, stream) for span in self._spans(stream)}
        Rerun(self, {span: landing.target for span, landing in landings.items()}).run()
        for span, landing in landings.items():
            mover.stats.remade_bytes += span.bytes - span.rows.geometry.prefix_bytes(self.rows)
            landing.is_remade = True
            span.landing = landing
        return landings

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple, dict]:
        return rebuilt(self.skeleton, tensors)

    def contexts(self) -> list[torch.autocast]:
        """Autocast as it was in forward."""
        return [torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)
                for kind, dtype, enabled, cache in self._autocast]  # fmt: skip

    def _spans(self, stream: int) -> list[SavedSpan]:
        spans = {span: None for span in (write.span() for write in self.writes.values()) if span is not None}
        return [span for span in spans if span.alive() is None or span.stream != stream]

    def _landing(self, mover: Mover, span: SavedSpan, stream: int) -> RowLanding:
        landing = span.landing
        if landing is None or landing.is_remade or landing.stream != stream:
            landing = mover.start_rows(span)
        mover.ahead.end(span)
        return landing

    def _check_unchanged(self) -> None:
        for tensor, version in self._states:
            check_version(tensor, version, tensor.shape)
        if modes(self.block) != self._modes:
            raise CorruptionError(
                f"rows of {type(self.block).__name__} can't be computed again: it was switched between training and "
                "evaluation since its forward; run backward first, or leave ROWS out of the policy"
            )


def _autocast_states() -> list[tuple[str, torch.dtype, bool, bool]]:
    kinds = ["cpu", "cuda"] if torch.cuda.is_initialized() else ["cpu"]
    cache = torch.is_autocast_cache_enabled()
    return [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache) for kind in kinds]
