"""memsys.pack_weights: one file from which weights can be streamed, and which every reader of safetensors opens."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import torch

from memsys import _C, _tensor
from memsys.errors import CorruptionError, SpillError
from memsys.weights.bundles import Bundle, rows_of_bundle
from memsys.weights.journal import Journal
from memsys.weights.layout import FileLayout, Stored, plan_layout
from memsys.weights.order import order_by_use
from memsys.weights.output import Output, checked_target
from memsys.weights.sources import Origin, Source, bundles_of, source_of

_CHUNK_BYTES = 8 * 2**20


def pack_weights(source: Origin, path: str | os.PathLike, bundle_ffn: bool = True) -> None:
    """Writes weights to a safetensors file whose tensors begin on pages and whose bytes have checksums.

    `source`: a module, a state dict, a .safetensors file, or a Hugging Face folder; files are read tensor by tensor,
    so that memory holds the largest tensor (with `bundle_ffn` the largest feed-forward network), never the model.
    `bundle_ffn`: store feed-forward networks with ReLU a second time, row by row (LLM in a flash, section 3.2), for
    reading single neurons; where the activation is another one nothing is bundled.

    A file at `path` stays whole until the new one takes its place. An interrupted call leaves `path`.partial and its
    journal; the next call with the same source verifies what is there and goes on.

    Raises SpillError for what the system refuses (too little space, before anything is written), CorruptionError for
    a source that is not right, DtypeError, InputError or UnsupportedError for a tensor that no file can hold.
    """
    checked_target(path)
    origin = source_of(source)
    bundles = bundles_of(origin) if bundle_ffn else {}
    names = list(origin.tensors)
    dense = [(names[place], origin.tensors[names[place]]) for place in order_by_use(names)]
    layout = plan_layout(dense, bundles, origin.aliases)
    output = Output(path)
    try:
        journal = Journal(output.path, _purpose(layout, origin))
    except BaseException:
        output.abandon()
        raise
    try:
        _write(layout, origin, bundles, output, journal)
        output.finish()
        journal.remove()
    except Exception as error:
        # What the disk refused may go on later; anything else would only fail again.
        if not isinstance(error, SpillError) or output.is_lost or not journal.finished:
            output.abandon()
            journal.remove()
        raise
    finally:
        output.close()
        journal.close()


def _purpose(layout: FileLayout, origin: Source) -> dict[str, object]:
    described = json.dumps([layout.entries, layout.text]).encode("ascii")
    return {"version": 1, "layout": hashlib.sha256(described).hexdigest(), "source": origin.identity}


def _write(layout: FileLayout, origin: Source, bundles: dict[str, Bundle], output: Output, journal: Journal) -> None:
    output.reserve(layout.file_bytes, is_resumed=bool(journal.finished))
    journal.cut(_count_whole(layout, origin, bundles, output, journal))
    places = list(zip(layout.tensors, layout.offsets, strict=True))
    for stored, offset in places[len(journal.finished) :]:
        checksums, at = b"", offset
        for chunk in _chunks(stored, origin, bundles):
            checksums += _checksums(chunk, stored)
            output.write(chunk, at)
            at += chunk.nbytes
        if at - offset != stored.bytes:
            raise CorruptionError(f"{output.path}: tensor {stored.name!r}: wanted {stored.bytes} bytes, found "
                                  f"{at - offset}; keep the source as it is while it is packed")  # fmt: skip
        journal.append(checksums)
    # Last, so that a file without it is no file at all.
    output.write(layout.header(b"".join(journal.finished)), 0)


def _chunks(stored: Stored, origin: Source, bundles: dict[str, Bundle]) -> Iterable[torch.Tensor]:
    """The tensor's bytes in contiguous CPU tensors, each of whole checksum units but the last."""
    bundle = bundles.get(stored.name)
    if bundle is None:
        return (origin.read(name) for name in (stored.name,))
    dense = {part: origin.read(name) for part, name in bundle.tensors.items()}
    return rows_of_bundle(bundle, dense, _CHUNK_BYTES)


def _checksums(chunk: torch.Tensor, stored: Stored) -> bytes:
    return _C.crc32c_units(_tensor.pointer_of(chunk), chunk.nbytes, stored.unit_bytes)


def _count_whole(
    layout: FileLayout, origin: Source, bundles: dict[str, Bundle], output: Output, journal: Journal
) -> int:
    """How many tensors, from the first on, an earlier call left whole in the partial file."""
    count = 0
    for stored, offset, checksums in zip(layout.tensors, layout.offsets, journal.finished, strict=False):
        if _read_back(output, stored, offset) != checksums:
            break
        # Of a source in memory nothing else says that it is the one that was being packed.
        if origin.identity is None and checksums != b"".join(
            _checksums(chunk, stored) for chunk in _chunks(stored, origin, bundles)
        ):
            break
        count += 1
    return count


def _read_back(output: Output, stored: Stored, offset: int) -> bytes:
    room = torch.empty(max(1, _CHUNK_BYTES // stored.unit_bytes) * stored.unit_bytes, dtype=torch.uint8)
    checksums = b""
    for begin in range(0, stored.bytes, room.nbytes):
        chunk = room[: min(room.nbytes, stored.bytes - begin)]
        if output.read(chunk, offset + begin) != chunk.nbytes:
            return b""
        checksums += _checksums(chunk, stored)
    return checksums
