"""Packing: what is in the file, where it lies, and what is refused."""

import base64
import json
import os
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from traced_pair import Pair
from weight_files import DTYPES, assert_same_bits, bits_of, every_kind, header_of, random_bits, relu_model

needs_memsys()

import memsys  # noqa: E402
from memsys import DtypeError, InputError, UnsupportedError, pack_weights  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402

# What safetensors' own binding for torch has no name for yet.
UNKNOWN_TO_STOCK = {torch.float8_e8m0fnu}


def test_stock_safetensors_opens_it(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in every_kind().items() if tensor.dtype not in UNKNOWN_TO_STOCK}
    pack_weights(tensors, tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert_same_bits({name: loaded[name] for name in tensors}, tensors)
    assert all(name.startswith("memsys.pad.") for name in set(loaded) - set(tensors))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert torch.equal(file.get_slice("bytes.of65537")[60_000:], tensors["bytes.of65537"][60_000:])


def test_every_tensor_lies_on_a_page(tmp_path: Path) -> None:
    """In the header, by our reader's word, and in the bytes themselves."""
    tensors = every_kind()
    path = tmp_path / "a.safetensors"
    pack_weights(tensors, path)
    data = path.read_bytes()
    header, end = header_of(data)
    assert end % 4096 == 0 and len(data) % 4096 == 0
    weights = open_weights(path)
    for name, tensor in tensors.items():
        begin, finish = (end + offset for offset in header[name]["data_offsets"])
        assert begin % 4096 == 0 and weights.entries[name].offset == begin
        assert data[begin:finish] == bits_of(tensor)


def test_tensors_lie_in_the_order_of_use(tmp_path: Path) -> None:
    model = relu_model()
    save_file(model.state_dict(), tmp_path / "sorted.safetensors")  # by name, as it does
    pack_weights(tmp_path / "sorted.safetensors", tmp_path / "a.safetensors")
    names = list(open_weights(tmp_path / "a.safetensors").entries)
    assert names[0] == "embed.weight" and names[-1] == "head.weight"
    assert [name.split(".")[1] for name in names[1:-1]] == ["0"] * 4 + ["1"] * 4


def test_metadata_is_what_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    pack_weights(relu_model(width=2048, count=4, dtype=torch.bfloat16), path)
    header, end = header_of(path.read_bytes())
    metadata = header.pop("__metadata__")
    layout = json.loads(metadata["memsys.layout"])
    assert (layout["version"], layout["page_bytes"]) == (1, 65536)
    assert layout["units"] == {f"layers.{place}.memsys_bundle": 4096 for place in (0, 1)}
    canonical = {"tensors": header, "layout": metadata["memsys.layout"], "crc": metadata["memsys.crc"]}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()
    assert int(metadata["memsys.header_crc"]) == memsys._C.crc32c(text)
    values, at = base64.b64decode(metadata["memsys.crc"]), 0
    data = path.read_bytes()
    by_offset = sorted(header, key=lambda name: header[name]["data_offsets"])
    for name in (name for name in by_offset if not name.startswith("memsys.pad.")):
        begin, finish = (end + offset for offset in header[name]["data_offsets"])
        unit = layout["units"].get(name, 65536)
        for start in range(begin, finish, unit):
            wanted = memsys._C.crc32c(data[start : min(start + unit, finish)])
            assert int.from_bytes(values[at : at + 4], "little") == wanted
            at += 4
    assert at == len(values)


def test_one_memory_is_stored_once(tmp_path: Path) -> None:
    model = nn.Module()
    model.embed, model.head = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
    model.head.weight = model.embed.weight
    model.register_buffer("turned", model.embed.weight.detach().t())  # the same memory, read another way
    pack_weights(model, tmp_path / "a.safetensors")
    weights = open_weights(tmp_path / "a.safetensors")
    assert weights.aliases == {"head.weight": "embed.weight"}
    assert set(weights.names()) == {"embed.weight", "turned"}
    assert torch.equal(weights.read("head.weight"), model.embed.weight)
    assert torch.equal(weights.read("turned"), model.embed.weight.t())


def test_strides_and_views_are_written_plain(tmp_path: Path) -> None:
    base = random_bits((6, 8), torch.complex64)
    tensors = {"t": base.t(), "step": base[::2, 1::3], "conj": base.conj(), "neg": base.conj().imag,
               "neg one": base[0, 0].conj().imag, "one": base[0, 0].expand(3, 2)}  # fmt: skip
    pack_weights(tensors, tmp_path / "a.safetensors")
    weights = open_weights(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert bits_of(weights.read(name)) == bits_of(tensor.resolve_conj().resolve_neg()), name


UNFIT = {
    "meta": (lambda: torch.empty(2, device="meta"), UnsupportedError),
    "subclass": (lambda: Pair(torch.ones(2), torch.ones(2)), UnsupportedError),
    "sparse": (lambda: torch.ones(2, 2).to_sparse(), UnsupportedError),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), UnsupportedError),
    "complex128": (lambda: torch.ones(2, dtype=torch.complex128), DtypeError),
    "text": (lambda: "text", DtypeError),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_what_no_file_can_hold_is_named(kind: str, tmp_path: Path) -> None:
    make, error = UNFIT[kind]
    with pytest.raises(error, match=r"'the\.bad'"):
        pack_weights({"good": torch.ones(2), "the.bad": make()}, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["memsys.pad.0", "a.memsys_bundle", "__metadata__", "a\nb", "\ud800", 3])
def test_a_name_that_is_taken_or_odd_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rename"):
        pack_weights({name: torch.ones(2)}, tmp_path / "a.safetensors")


@pytest.mark.parametrize("source", [3, None, ["a"]])
def test_no_source_at_all(source: object, tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match="module"):
        pack_weights(source, tmp_path / "a.safetensors")


def test_names_of_every_alphabet(tmp_path: Path) -> None:
    tensors = {
        name: torch.full((3,), float(place)) for place, name in enumerate(['"quoted"', "Gewicht.ß", "重み.0.😀", ""])
    }
    pack_weights(tensors, tmp_path / "a.safetensors")
    weights = open_weights(tmp_path / "a.safetensors")
    assert_same_bits({name: weights.read(name) for name in weights.names()}, tensors)
    assert set(load_file(tmp_path / "a.safetensors")) >= set(tensors)


def test_packing_twice_changes_nothing(tmp_path: Path) -> None:
    """A packed file is a source as good as what it was packed from; its bundles and tied names stay."""
    model = relu_model()
    model.tied = model.head
    pack_weights(model, tmp_path / "a.safetensors")
    pack_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    pack_weights(tmp_path / "b.safetensors", tmp_path / "b.safetensors")  # onto itself
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_nothing_to_pack(tmp_path: Path) -> None:
    pack_weights({}, tmp_path / "a.safetensors")
    assert list(open_weights(tmp_path / "a.safetensors").entries) == []
    assert load_file(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of one element, so that no other tensor's alignment helps."""
    tensors = {"a": random_bits((1,), dtype), "b": random_bits((3, 1, 5), dtype, 1)}
    pack_weights(tensors, tmp_path / "a.safetensors")
    weights = open_weights(tmp_path / "a.safetensors")
    assert_same_bits({name: weights.read(name) for name in weights.names()}, tensors)
