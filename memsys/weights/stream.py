"""memsys.stream and stream_stats: a model whose blocks' frozen weights stay in a file, a window of them in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch

from memsys import _C, _tensor, budget
from memsys.errors import BudgetError, InputError, UnsupportedError
from memsys.runtimes import runtime_for
from memsys.weights.blocks import Block, StreamedWeight, find_blocks
from memsys.weights.checked import Weights, open_weights
from memsys.weights.coverage import CoverageReport, last_report
from memsys.weights.patch import keep_apart, patch_forward
from memsys.weights.resident import check_like, fill_resident
from memsys.weights.row_way import stream_rows
from memsys.weights.session import StreamSession, stub_of
from memsys.weights.stats import StreamStats
from memsys.weights.walk import Walk

logger = logging.getLogger("memsys")

_KEY = "memsys_streamed"
_POLICIES = ("auto", "layers", "rows")
# Without a budget: of the memory that is free once the rest of the model is in place.
_DEFAULT_SHARE = "80%"


def stream(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    device_budget: int | str | None = None,
    window: int | None = None,
    policy: str | CoverageReport = "auto",
    verify: str = "first",
    blocks: str | Sequence[str] | None = None,
) -> torch.nn.Module:
    """Takes the weights of the model's blocks from a file as they are needed, so that a model larger than memory can
    be fine-tuned by adapters, or generated from; loss, gradients and tokens equal the resident model's to the last bit.

    The same module comes back. The matrices of its repeated blocks become frozen and leave memory; embeddings, norms,
    adapters and all that the file does not hold stay. What the file holds takes the file's values. A training step
    walks the blocks forward and back: with a window of W of L blocks it reads 2(L-W) of them.

    Args:
        model: on a CPU, or on the meta device (it then takes the file's dtypes, and is never built whole).
        path: a file of memsys.pack_weights, a plain .safetensors file, or a Hugging Face folder with such files.
        device_budget: bytes, "4GiB" or "50%" (of free memory) for streamed weights, those being read included; by
            default 80 % of what is free. The page cache holds none of the file.
        window: a count of blocks; by default as many as the budget holds.
        policy: "layers"; "rows" (the rows of ReLU networks stream, as in memsys.windowed_ffn, the rest stays: for
            generation only); a report of memsys.coverage, which says which of them; or "auto": what coverage last
            said of this model, else "layers".
        verify: checksums (of packed files) at the "first" read, "always" or "never".
        blocks: names of the blocks, or of lists of them, where they are not the members of a repeated list.

    Raises:
        InputError: (a ValueError) for a model or file that do not fit each other; BudgetError for a budget below one
            block; CorruptionError or SpillError for a bad file; UnsupportedError for a model on another device.

    After "LLM in a flash" (arXiv 2312.11514), its window over rows made one over layers.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"stream: wanted a torch.nn.Module, found {type(model).__name__}; pass the model itself")
    if policy not in _POLICIES and not isinstance(policy, CoverageReport):
        raise InputError(f"stream: policy {policy!r}, wanted one of {', '.join(_POLICIES)}, or a report of coverage")
    if session_of(model) is not None:
        raise InputError("stream: this model is streamed already; call memsys.restore(model) first")
    _check_device(model)
    # Weights are made here that others use in other modes.
    with torch.inference_mode(False), torch.device("cpu"):
        if _way(model, policy) == "rows":
            model.__dict__[_KEY] = stream_rows(model, os.fspath(path), device_budget or _DEFAULT_SHARE, verify)
        else:
            model.__dict__[_KEY] = _stream(model, os.fspath(path), device_budget, window, verify, blocks)
    return model


def _way(model: torch.nn.Module, policy: str | CoverageReport) -> str:
    """ "rows" or "layers": a model that fits is a window of all its layers."""
    report = policy if isinstance(policy, CoverageReport) else last_report(model) if policy == "auto" else None
    if report is None:
        return "layers" if policy == "auto" else policy
    is_rows = report.advice is report.generation and report.generation.way == "rows"
    logger.info("memsys.stream: %s, because %s", "rows" if is_rows else "layers", report.advice.reason)
    return "rows" if is_rows else "layers"


def _stream(model: torch.nn.Module, path: str, device_budget: int | str | None, window: int | None, verify: str,
            blocks: str | Sequence[str] | None) -> _Streamed:  # fmt: skip
    weights = open_weights(path, verify)
    names = {*weights.names(), *weights.aliases}
    chosen = find_blocks(model, names, blocks)
    dtypes = [[_fitting(weight.parameter, weight.name, weights) for weight in block.weights] for block in chosen]
    store, count, limit = _make_store(weights, chosen, device_budget, window)
    streamed = {id(weight.parameter) for block in chosen for weight in block.weights}
    kept_bytes = fill_resident(model, streamed, names, weights.read)
    _tell_of_frozen(model, chosen)
    for block, types in zip(chosen, dtypes, strict=True):
        for weight, dtype in zip(block.weights, types, strict=True):
            weight.parameter.requires_grad_(False)
            weight.parameter.grad = None
            if weight.parameter.device.type == "meta":
                _tensor.become(weight.parameter, stub_of(weight.parameter, dtype))
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    session = StreamSession(store, chosen, dtypes, Walk(is_trained), weights.read)
    fixed = {"kept_bytes": kept_bytes, "block_count": len(chosen), "window_layers": count, "budget_bytes": limit}
    return _Streamed(model, session, weights, fixed)


class _Streamed:
    """What memsys.stream did to a model, and how to undo it."""

    def __init__(self, model: torch.nn.Module, session: StreamSession, weights: Weights, fixed: dict[str, int]) -> None:
        self.session = session
        self._model = model
        self._weights = weights
        self._fixed = fixed
        self._undo = [keep_apart(model, (weight for block in session.blocks for weight in block.weights))]
        for index, block in enumerate(session.blocks):
            owners = [owner for weight in block.weights for owner, _ in weight.owners]
            for module in dict.fromkeys([block.module, *owners]):
                self._undo.append(patch_forward(module, session, index))
                if module is not model:
                    self._undo.append(keep_apart(module, _inside(module, block)))

    def stats(self) -> StreamStats:
        counts = self.session.counts()
        names = ("load_count", "hit_count", "read_bytes", "resident_bytes", "peak_resident_bytes", "stall_us")
        return StreamStats(**self._fixed, **{name: counts[name] for name in names})

    def restore(self) -> None:
        """Reads every weight into memory and undoes the patches. Where memory does not hold them, nothing changes."""
        self.session.close()
        values = [[self._weights.read(weight.name) for weight in block.weights] for block in self.session.blocks]
        for undo in reversed(self._undo):
            undo()
        for block, tensors in zip(self.session.blocks, values, strict=True):
            for weight, value in zip(block.weights, tensors, strict=True):
                weight.parameter.__class__ = torch.nn.Parameter
                weight.parameter.data = value
                del weight.parameter.memsys_home
        self._model.__dict__.pop(_KEY, None)


def _inside(module: torch.nn.Module, block: Block) -> list[StreamedWeight]:
    held = set(module.modules())
    return [weight for weight in block.weights if any(owner in held for owner, _ in weight.owners)]


def session_of(model: torch.nn.Module) -> _Streamed | None:
    """What memsys.stream left on the model, or on the one that an adapter's model is around."""
    for module in model.modules():
        if _KEY in module.__dict__:
            return module.__dict__[_KEY]
    return None


def stream_stats(model: torch.nn.Module) -> StreamStats:
    """What streaming did to this model so far. Raises InputError if it is not streamed."""
    found = session_of(model) if isinstance(model, torch.nn.Module) else None
    if found is None:
        raise InputError("stream_stats: this model is not streamed; call memsys.stream(model, path) first")
    return found.stats()


def _check_device(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.device.type not in ("cpu", "meta"):
            raise UnsupportedError(f"stream: weights are streamed to the CPU only so far, found {name} on "
                                   f"{parameter.device}; move the model to the CPU, or keep it")  # fmt: skip


def _tell_of_frozen(model: torch.nn.Module, blocks: list[Block]) -> None:
    """A model of which a part is frozen was meant to be trained in the rest."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    names = [weight.name for block in blocks for weight in block.weights if weight.parameter.requires_grad]
    if names:
        logger.warning("memsys.stream freezes %d weights that were to be trained, %s among them: the file holds them; "
                       "leave out what is trained from it, or name the blocks", len(names), names[0])  # fmt: skip


def _fitting(parameter: torch.nn.Parameter, name: str, weights: Weights) -> torch.dtype:
    entry = weights.entry(name)
    check_like(parameter, name, entry.shape, entry.dtype)
    return entry.dtype


def _make_store(
    weights: Weights, blocks: list[Block], device_budget: int | str | None, window: int | None
) -> tuple[object, int, int]:
    """The core's store, the count of blocks in its window, and the budget (-1: none)."""
    layers = []
    for block in blocks:
        entries = [weights.entry(weight.name) for weight in block.weights]
        layers.append([(entry.file, entry.offset, entry.bytes) for entry in entries])
    slot_bytes = _C.layer_slot_bytes(layers)
    asked = _DEFAULT_SHARE if device_budget is None and window is None else device_budget
    limit = budget.parse_budget(asked, budget.available_host_bytes)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise InputError(f"stream: window: wanted a count of blocks of at least 1, found {window!r}; for instance 3")
    fitting = len(blocks) if limit is None else limit // slot_bytes
    count = min(len(blocks), fitting if window is None else window)
    if count < 1 or count > fitting:
        raise BudgetError(f"stream: device_budget: wanted {budget.format_bytes(slot_bytes * max(count, 1))} for "
                          f"{max(count, 1)} of {len(blocks)} blocks, found {budget.format_bytes(limit)}; raise it to "
                          f"that at least, or lower window")  # fmt: skip
    runtime, _ = runtime_for(torch.device("cpu"))
    bytes_ = -1 if limit is None else limit
    return _C.LayerStore(runtime, layers=layers, window_layers=count, device_budget_bytes=bytes_), count, bytes_
