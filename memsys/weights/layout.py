"""The layout of a packed file: a safetensors file whose tensors begin on pages and whose bytes have checksums.

`plan_layout` decides where everything lies and writes the header; `parse_layout` believes a header's metadata only
after checking it against its own checksum and against the tensors.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from memsys import _C
from memsys._dtypes import DTYPES
from memsys.errors import CorruptionError, InputError, UnsupportedError
from memsys.weights.bundles import ALIGNMENT_BYTES, BUNDLE_SUFFIX, Bundle, Facts, Ffn, bundle_of
from memsys.weights.folder import parse_object

VERSION = 1
PAGE_BYTES = 65536  # the unit of a dense tensor's checksums
PAD_PREFIX = "memsys.pad."
MAX_HEADER_BYTES = 100_000_000
_LAYOUT, _CRC, _HEADER_CRC = "memsys.layout", "memsys.crc", "memsys.header_crc"
_CRC_BYTES = 4


class Stored(NamedTuple):
    """A tensor as it goes into a file; `unit_bytes` is the span that one checksum covers."""

    name: str
    facts: Facts
    unit_bytes: int

    @property
    def bytes(self) -> int:
        return bytes_of(self.facts)

    @property
    def crc_bytes(self) -> int:
        return _CRC_BYTES * -(-self.bytes // self.unit_bytes)


class FileLayout(NamedTuple):
    """Where everything lies. `offsets` counts from the start of the file; `entries` is the header without metadata."""

    tensors: tuple[Stored, ...]
    offsets: tuple[int, ...]
    entries: dict[str, dict[str, object]]
    text: str
    header_bytes: int
    file_bytes: int

    def header(self, crc: bytes) -> bytes:
        """The first `header_bytes` bytes of the file; `crc` holds the checksums of all tensors in their order."""
        return _with_length(_header_text(self.entries, self.text, crc, self.header_crc(crc)), self.header_bytes)

    def header_crc(self, crc: bytes) -> int:
        return _header_crc(self.entries, self.text, _encode(crc))


class PackedLayout(NamedTuple):
    """What a packed file's metadata says: checksum unit and values by tensor, bundles, second names of tensors."""

    unit_bytes: dict[str, int]
    checksums: dict[str, bytes]
    bundles: dict[str, Bundle]
    aliases: dict[str, str]


def bytes_of(facts: Facts) -> int:
    count = 1
    for size in facts.shape:
        count *= size
    return count * DTYPES[facts.dtype].itemsize


def is_filler(name: str) -> bool:
    return name.startswith(PAD_PREFIX)


def check_name(name: object) -> str:
    """The name, if a header can hold it and a packed file has no other use for it. Raises InputError."""
    if not isinstance(name, str):
        raise InputError(f"a tensor's name: wanted text, found {name!r}; rename it")
    is_taken = name.startswith("memsys.") or name == "__metadata__" or name.rsplit(".", 1)[-1] == BUNDLE_SUFFIX
    is_plain = all(letter >= " " and letter != "\x7f" and not "\ud800" <= letter < "\ue000" for letter in name)
    if is_taken or not is_plain:
        raise InputError(f"tensor {name!r}: wanted a name without control characters that is none of memsys.*, "
                         f"*.{BUNDLE_SUFFIX} and __metadata__; rename it")  # fmt: skip
    return name


def plan_layout(
    dense: Sequence[tuple[str, Facts]], bundles: Mapping[str, Bundle], aliases: Mapping[str, str]
) -> FileLayout:
    """The file of these tensors in this order, with the bundles after them. Raises InputError if the header is too
    large for the format."""
    tensors = [Stored(check_name(name), facts, PAGE_BYTES) for name, facts in dense]
    tensors += [Stored(name, bundle.facts, bundle.unit_bytes) for name, bundle in bundles.items()]
    entries, offsets, at = _place(tensors)
    units = {one.name: one.unit_bytes for one in tensors if one.unit_bytes != PAGE_BYTES}
    layout = {"version": VERSION, "page_bytes": PAGE_BYTES, "units": units, "aliases": dict(aliases),
              "bundles": {name: _described(bundle) for name, bundle in bundles.items()}}  # fmt: skip
    text = json.dumps(layout, separators=(",", ":"))
    # The checksums come last, when the size of the header can't change any more: their widest values stand in.
    stand_in = bytes(sum(one.crc_bytes for one in tensors))
    longest = len(_header_text(entries, text, stand_in, 2**32 - 1))
    header_bytes = -(-(8 + longest) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if header_bytes - 8 > MAX_HEADER_BYTES:
        raise InputError(f"the header: wanted at most {MAX_HEADER_BYTES} bytes, as safetensors allows, found "
                         f"{header_bytes - 8}; pack the model in several files")  # fmt: skip
    return FileLayout(tuple(tensors), tuple(header_bytes + offset for offset in offsets), entries, text, header_bytes,
                      header_bytes + at)  # fmt: skip


def _place(tensors: Sequence[Stored]) -> tuple[dict[str, dict[str, object]], list[int], int]:
    entries: dict[str, dict[str, object]] = {}
    offsets, at, pad_count = [], 0, 0
    for one in tensors:
        if one.name in entries:
            raise InputError(f"tensor {one.name!r}: wanted every name once, found it twice; rename one")
        entries[one.name] = _entry(one.facts, at)
        offsets.append(at)
        at += one.bytes
        gap = -at % ALIGNMENT_BYTES
        if gap:
            entries[f"{PAD_PREFIX}{pad_count}"] = _entry(Facts("U8", (gap,)), at)
            at, pad_count = at + gap, pad_count + 1
    return entries, offsets, at


def _entry(facts: Facts, offset: int) -> dict[str, object]:
    return {"dtype": facts.dtype, "shape": list(facts.shape), "data_offsets": [offset, offset + bytes_of(facts)]}


def _described(bundle: Bundle) -> dict[str, object]:
    return {**bundle._asdict(), "parts": list(bundle.parts)}


def plain_header(dense: Sequence[tuple[str, Facts]], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """The header of an ordinary safetensors file of these tensors in this order, and their offsets in the file."""
    entries, offsets, at = {}, [], 0
    for name, facts in dense:
        entries[name] = _entry(facts, at)
        offsets.append(at)
        at += bytes_of(facts)
    text = _dump({"__metadata__": dict(metadata), **entries})
    header_bytes = -(-(8 + len(text)) // 8) * 8
    return _with_length(text, header_bytes), [header_bytes + offset for offset in offsets]


def _with_length(text: bytes, header_bytes: int) -> bytes:
    return (header_bytes - 8).to_bytes(8, "little") + text.ljust(header_bytes - 8)


def _header_text(entries: Mapping[str, object], text: str, crc: bytes, header_crc: int) -> bytes:
    metadata = {"format": "pt", _LAYOUT: text, _CRC: _encode(crc), _HEADER_CRC: str(header_crc)}
    return _dump({"__metadata__": metadata, **entries})


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _encode(crc: bytes) -> str:
    return base64.b64encode(crc).decode("ascii")


def _header_crc(entries: Mapping[str, object], layout: str, crc: str) -> int:
    canonical = {"tensors": entries, "layout": layout, "crc": crc}
    return _C.crc32c(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode("ascii"))


def parse_layout(
    path: str, tensors: Sequence[Mapping[str, object]], metadata: Mapping[str, str]
) -> PackedLayout | None:
    """What the metadata says of the tensors (as the core lists them, by offset); None for a file that is not packed.

    Raises CorruptionError, whose message names the file, and UnsupportedError for a layout newer than this.
    """
    if not any(key.startswith("memsys.") for key in metadata):
        return None
    wanted = {"format", _LAYOUT, _CRC, _HEADER_CRC}
    if set(metadata) != wanted or metadata["format"] != "pt":
        raise _bad(path, f"a format of 'pt' and the keys {sorted(wanted)}", f"{sorted(metadata)}")
    start = min((tensor["offset"] for tensor in tensors), default=0)
    entries = {tensor["name"]: _entry(_facts(tensor), tensor["offset"] - start) for tensor in tensors}
    found = _header_crc(entries, metadata[_LAYOUT], metadata[_CRC])
    if metadata[_HEADER_CRC] != str(found):
        raise _bad(path, f"a header with checksum {metadata[_HEADER_CRC][:20]}", f"one with {found}")
    return _checked(path, tensors, parse_object(metadata[_LAYOUT], f"{path}: {_LAYOUT}"), metadata[_CRC])


def _facts(tensor: Mapping[str, object]) -> Facts:
    return Facts(tensor["dtype"], tuple(tensor["shape"]))


def _checked(path: str, tensors: Sequence[Mapping], layout: Mapping[str, object], crc: str) -> PackedLayout:
    if layout.get("version") != VERSION:
        raise UnsupportedError(f"{path}: wanted layout version {VERSION}, found {layout.get('version')!r}; "
                               "use the memsys that packed the file, or pack it again")  # fmt: skip
    if set(layout) != {"version", "page_bytes", "units", "aliases", "bundles"} or layout["page_bytes"] != PAGE_BYTES:
        raise _bad(path, f"a layout in pages of {PAGE_BYTES} bytes, with units, aliases and bundles", f"{set(layout)}")
    facts = {tensor["name"]: _facts(tensor) for tensor in tensors if not is_filler(tensor["name"])}
    for tensor in tensors:
        if not is_filler(tensor["name"]) and tensor["offset"] % ALIGNMENT_BYTES:
            raise _bad(path, "every tensor on a page", f"tensor {tensor['name']!r} at byte {tensor['offset']}")
    bundles = _checked_bundles(path, facts, layout["bundles"])
    units = {name: bundles[name].unit_bytes if name in bundles else PAGE_BYTES for name in facts}
    if layout["units"] != {name: unit for name, unit in units.items() if unit != PAGE_BYTES}:
        raise _bad(path, "units that fit the bundles", f"{layout['units']!r:.200}")
    aliases = layout["aliases"]
    if not isinstance(aliases, dict) or any(
        name in facts or is_filler(name) or not isinstance(other, str) or other not in facts or other in bundles
        for name, other in aliases.items()
    ):
        raise _bad(path, "aliases of tensors of the file", f"{aliases!r:.200}")
    return PackedLayout(units, _split(path, facts, units, crc), bundles, aliases)


def _checked_bundles(path: str, facts: Mapping[str, Facts], described: object) -> dict[str, Bundle]:
    bundles = {}
    try:
        for name, given in described.items():
            bundle = bundle_of(Ffn(name, given["tensors"], given["is_transposed"]), facts)
            if _described(bundle) != given or facts[name] != bundle.facts or name.split(".")[-1] != BUNDLE_SUFFIX:
                raise _bad(path, f"tensor {name!r} to be as {bundle} says", f"{facts[name]}, and {given}")
            bundles[name] = bundle
    except (AttributeError, KeyError, TypeError, InputError) as error:
        raise _bad(path, "bundles of tensors of the file", f"{type(error).__name__}: {error}") from None
    return bundles


def _split(path: str, facts: Mapping[str, Facts], units: Mapping[str, int], crc: str) -> dict[str, bytes]:
    try:
        values = base64.b64decode(crc, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(path, "checksums in base64", str(error)) from None
    checksums, at = {}, 0
    for name, one in facts.items():
        end = at + Stored(name, one, units[name]).crc_bytes
        checksums[name] = values[at:end]
        at = end
    if at != len(values):
        raise _bad(path, f"checksums of {at} bytes", f"{len(values)}")
    return checksums


def _bad(path: str, wanted: str, found: str) -> CorruptionError:
    return CorruptionError(f"{path}: the header's metadata: wanted {wanted}, found {found}; "
                           "pack or download the file again")  # fmt: skip
