"""The header's writer and parser against each other, against the stock library, and against forged metadata."""

import base64
import json
import os
import tempfile

import pytest
import safetensors
from built import needs_memsys
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import DTYPES, edited, header_of, relu_model

needs_memsys()

from memsys import _C, CorruptionError, InputError, UnsupportedError, pack_weights  # noqa: E402
from memsys._dtypes import DTYPES as BY_NAME  # noqa: E402
from memsys._dtypes import NAMES  # noqa: E402
from memsys.weights import layout as layouts  # noqa: E402
from memsys.weights.bundles import Facts  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402
from memsys.weights.layout import plan_layout  # noqa: E402

NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).filter(
    lambda name: not name.startswith("memsys.") and name != "__metadata__" and not name.endswith("memsys_bundle")
)
FACTS = st.builds(Facts, st.sampled_from(list(NAMES.values())), st.lists(st.integers(0, 40), max_size=3).map(tuple))
TENSORS = st.dictionaries(NAME, FACTS, max_size=8)


@given(TENSORS, st.randoms(use_true_random=False))
@settings(max_examples=120)
def test_what_is_written_is_what_is_read(facts: dict[str, Facts], draw) -> None:
    names = list(facts)
    aliases = {f"{name}.again": name for name in names if draw.random() < 0.2 and f"{name}.again" not in facts}
    planned = plan_layout(list(facts.items()), {}, aliases)
    crc = draw.randbytes(sum(one.crc_bytes for one in planned.tensors))
    header = planned.header(crc)
    assert len(header) == planned.header_bytes and len(header) % 4096 == 0 and planned.file_bytes % 4096 == 0
    data = header + bytes(planned.file_bytes - len(header))
    loaded = dict(safetensors.deserialize(data))
    assert {name for name in loaded if not name.startswith("memsys.pad.")} == set(facts)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.safetensors")
        with open(path, "wb") as file:
            file.write(data)
        weights = open_weights(path, verify="never")
        assert weights.aliases == aliases and list(weights.entries) == names
        for stored, offset in zip(planned.tensors, planned.offsets, strict=True):
            entry = weights.entries[stored.name]
            assert entry[:4] == (BY_NAME[stored.facts.dtype], stored.facts.shape, offset, stored.bytes)
            assert offset % 4096 == 0 and entry.unit_bytes == 65536
        file = weights.files[0]
        parsed = layouts.parse_layout(path, file.tensors, file.metadata)
        assert b"".join(parsed.checksums.values()) == crc


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    pack_weights(relu_model(), path)
    return path.read_bytes()


@given(place=st.integers(0, 2**20), byte=st.integers(0, 255), count=st.integers(1, 4))
@settings(max_examples=150)
def test_no_changed_header_passes(packed: bytes, place: int, byte: int, count: int) -> None:
    """Unless what was written is what was there, or white space."""
    end = header_of(packed)[1]
    place %= end
    changed = packed[:place] + bytes([byte]) * count + packed[place + count :]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.safetensors")
        with open(path, "wb") as file:
            file.write(changed)
        try:
            found = open_weights(path)
        except CorruptionError:
            return
        assert changed[:8] == packed[:8] and changed[8:end].split() == packed[8:end].split()
        assert len(found.entries) == 12


def forge(packed: bytes, change) -> bytes:
    """A header changed together with its checksum, as by someone who means harm."""

    def apply(header: dict) -> None:
        metadata = header["__metadata__"]
        layout = json.loads(metadata["memsys.layout"])
        change(layout, metadata)
        metadata["memsys.layout"] = layout if isinstance(layout, str) else json.dumps(layout, separators=(",", ":"))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        canonical = {"tensors": tensors, "layout": metadata["memsys.layout"], "crc": metadata["memsys.crc"]}
        text = json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()
        metadata["memsys.header_crc"] = str(_C.crc32c(text))

    return edited(packed, apply)


BUNDLE = "layers.0.memsys_bundle"
FORGED = {
    "nothing": lambda layout, metadata: None,
    "a page of 3 bytes": lambda layout, metadata: layout.update(page_bytes=3),
    "units of nobody": lambda layout, metadata: layout["units"].update(nobody=4096),
    "a unit of 0": lambda layout, metadata: layout["units"].update({BUNDLE: 0}),
    "units that are a list": lambda layout, metadata: layout.update(units=[]),
    "no units": lambda layout, metadata: layout.pop("units"),
    "another key": lambda layout, metadata: layout.update(more=1),
    "an alias of nobody": lambda layout, metadata: layout["aliases"].update(a="nobody"),
    "an alias of a bundle": lambda layout, metadata: layout["aliases"].update(a=BUNDLE),
    "an alias that is there": lambda layout, metadata: layout["aliases"].update({"head.weight": "embed.weight"}),
    "an alias of a number": lambda layout, metadata: layout["aliases"].update(a=[1]),
    "aliases that are text": lambda layout, metadata: layout.update(aliases="a"),
    "bundles that are text": lambda layout, metadata: layout.update(bundles="a"),
    "a bundle that is null": lambda layout, metadata: layout["bundles"].update({BUNDLE: None}),
    "a bundle of nobody": lambda layout, metadata: layout["bundles"].update(nobody=layout["bundles"][BUNDLE]),
    "a bundle lost": lambda layout, metadata: layout["bundles"].pop(BUNDLE),
    "more rows": lambda layout, metadata: layout["bundles"][BUNDLE].update(rows=10**9),
    "rows as a fraction": lambda layout, metadata: layout["bundles"][BUNDLE].update(rows=40.5),
    "a short stride": lambda layout, metadata: layout["bundles"][BUNDLE].update(stride_bytes=8),
    "parts turned": lambda layout, metadata: layout["bundles"][BUNDLE]["parts"].reverse(),
    "a down that is the head": lambda layout, metadata: layout["bundles"][BUNDLE]["tensors"].update(down="head.weight"),
    "a down that is a list": lambda layout, metadata: layout["bundles"][BUNDLE]["tensors"].update(down=[]),
    "no up": lambda layout, metadata: layout["bundles"][BUNDLE]["tensors"].pop("up"),
    "another activation": lambda layout, metadata: layout["bundles"][BUNDLE].update(activation="gelu"),
    "checksums missing": lambda layout, metadata: metadata.update({"memsys.crc": metadata["memsys.crc"][:-8]}),
    "checksums too many": lambda layout, metadata: metadata.update(
        {"memsys.crc": base64.b64encode(base64.b64decode(metadata["memsys.crc"]) + bytes(4)).decode()}
    ),
    "checksums in no base64": lambda layout, metadata: metadata.update(
        {"memsys.crc": "*" + metadata["memsys.crc"][1:]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_forged_metadata_is_refused(kind: str, packed: bytes, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(forge(packed, FORGED[kind]))
    if kind == "nothing":
        assert len(open_weights(path).bundles) == 2
        return
    with pytest.raises(CorruptionError, match=r"a\.safetensors"):
        open_weights(path)


def test_a_later_version_is_told_apart(packed: bytes, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(forge(packed, lambda layout, metadata: layout.update(version=2)))
    with pytest.raises(UnsupportedError, match="version 1, found 2"):
        open_weights(path)


@pytest.mark.parametrize("text", ["[]", "1", "{", "[" * 100_000, '{"version":1,"version":1}', "NaN"])
def test_a_layout_that_is_no_object(text: str) -> None:
    metadata = {"format": "pt", "memsys.layout": text, "memsys.crc": ""}
    canonical = {"tensors": {}, "layout": text, "crc": ""}
    digest = _C.crc32c(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(CorruptionError, match=r"a\.safetensors"):
        layouts.parse_layout("a.safetensors", [], metadata | {"memsys.header_crc": str(digest)})


def test_a_header_too_large_for_the_format(monkeypatch) -> None:
    monkeypatch.setattr(layouts, "MAX_HEADER_BYTES", 4096)
    plan_layout([("a", Facts("U8", (10,)))], {}, {})
    with pytest.raises(InputError, match="at most 4096 bytes"):
        plan_layout([(f"name{place}", Facts("U8", (10,))) for place in range(100)], {}, {})


def test_a_name_twice() -> None:
    with pytest.raises(InputError, match="twice"):
        plan_layout([("a", Facts("U8", (1,)))] * 2, {}, {})


def test_every_dtype_of_torch_is_here() -> None:
    assert set(NAMES) == set(DTYPES)
