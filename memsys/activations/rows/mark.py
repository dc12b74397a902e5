"""Which modules are row segments: the layers of a model's lists, and those that the user declared."""

from __future__ import annotations

import torch

from memsys.activations.layers import repeated_layers
from memsys.errors import InputError

_MARK = "_memsys_token_local"


def token_local(module: torch.nn.Module) -> torch.nn.Module:
    """Declares that each position of a sequence goes through the module by itself, but for attention operations.

    Members of a model's lists of layers are found without it. It is a promise about structure that memsys still
    verifies, by one run in float64 on a few positions, before it computes rows of the module's saved tensors again (see
    `SavedTensor.row_segment`); a module that breaks it has its tensors moved whole. Declare it before memsys.offload.

    Returns the module. Raises InputError for what is no module. After MEMO (SIGMOD'25), section 4.1.
    """
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"token_local: wanted a torch.nn.Module, found {type(module).__name__}; wrap the function in "
                         "a module whose forward calls it")  # fmt: skip
    setattr(module, _MARK, True)
    return module


def row_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of the model whose calls may be row segments, each once."""
    declared = [module for module in model.modules() if module.__dict__.get(_MARK, False)]
    return list({id(module): module for module in (*repeated_layers(model), *declared)}.values())
