"""memsys.restore: the model as it was before memsys.offload and memsys.stream."""

from __future__ import annotations

import torch

from memsys.activations.offload import restore as restore_activations
from memsys.weights.stream import session_of


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undoes offload and stream, in any order of patching; does nothing to a model without.

    Streamed weights are read into memory, which has to hold them, and stay frozen. Graphs that were made before can
    still run backward, but for checkpoints of streamed blocks. Raises UnsupportedError inside of a streamed block's
    forward.
    """
    restore_activations(model)
    while (streamed := session_of(model)) is not None:
        streamed.restore()
    return model
