"""Unpacking: every byte comes back, in a plain file, a module or a dict, and a target that does not fit is refused."""

import os
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from traced_pair import Pair
from weight_files import assert_same_bits, every_kind, first_tensor, flipped, header_of, relu_model

needs_memsys()

import memsys  # noqa: E402
from memsys import CorruptionError, DtypeError, InputError, SpillError, UnsupportedError  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    memsys.pack_weights(relu_model(), tmp_path / "packed.safetensors")
    return tmp_path / "packed.safetensors"


def test_the_round_trip_of_every_kind(tmp_path: Path) -> None:
    tensors = every_kind()
    memsys.pack_weights(tensors, tmp_path / "packed.safetensors")
    memsys.unpack_weights(tmp_path / "packed.safetensors", tmp_path / "plain.safetensors")
    weights = open_weights(tmp_path / "plain.safetensors")
    assert_same_bits({name: weights.read(name) for name in weights.entries}, tensors)
    found: dict[str, torch.Tensor] = {}
    memsys.unpack_weights(tmp_path / "packed.safetensors", found)
    assert_same_bits(found, tensors)


def test_the_plain_file_is_an_ordinary_one(packed: Path, tmp_path: Path) -> None:
    """What safetensors would have written itself: no bundle, no filler, each tensor aligned to its element."""
    memsys.unpack_weights(packed, tmp_path / "plain.safetensors")
    assert_same_bits(load_file(tmp_path / "plain.safetensors"), relu_model().state_dict())
    save_file(relu_model().state_dict(), tmp_path / "stock.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "stock.safetensors").read_bytes()


def test_alignment_of_mixed_dtypes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3, dtype=torch.float64), "c": torch.ones(1).half()}
    memsys.pack_weights(tensors, tmp_path / "packed.safetensors")
    memsys.unpack_weights(tmp_path / "packed.safetensors", tmp_path / "plain.safetensors")
    header, end = header_of((tmp_path / "plain.safetensors").read_bytes())
    for name, tensor in tensors.items():
        assert (end + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def tied_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Module()
    model.embed, model.head = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
    model.head.weight = model.embed.weight
    return model


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    model, path = tied_model(), tmp_path / "packed.safetensors"
    memsys.pack_weights(model, path)
    memsys.unpack_weights(path, tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    again = tied_model()
    nn.init.zeros_(again.embed.weight)
    load_model(again, tmp_path / "plain.safetensors")
    assert torch.equal(again.head.weight, model.head.weight)
    found: dict[str, torch.Tensor] = {}
    memsys.unpack_weights(path, found)
    assert found["head.weight"] is found["embed.weight"]
    # Tied in the target alone: the plain file names one of the two.
    nn.init.zeros_(again.embed.weight)
    memsys.unpack_weights(tmp_path / "plain.safetensors", again)
    assert torch.equal(again.head.weight, model.head.weight)
    # Tied in the file alone.
    apart = tied_model()
    apart.head.weight = nn.Parameter(torch.zeros(9, 5))
    memsys.unpack_weights(path, apart)
    assert torch.equal(apart.head.weight, apart.embed.weight) and torch.equal(apart.head.weight, model.head.weight)


def test_a_module_is_filled_in_place(packed: Path) -> None:
    model = relu_model()
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    memsys.unpack_weights(packed, model)
    assert_same_bits(model.state_dict(), relu_model().state_dict())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == pointers
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_dict_is_filled_and_completed(packed: Path) -> None:
    wanted = relu_model().state_dict()
    turned = torch.zeros(24, 11).t()  # of any strides
    found = {"head.weight": turned}
    memsys.unpack_weights(packed, found)
    assert_same_bits(found, wanted)
    assert found["head.weight"] is turned


def emptied(change: str) -> object:
    """A target that does not fit, in one way."""
    target = {name: torch.zeros_like(tensor) for name, tensor in relu_model().state_dict().items()}
    target["head.weight"] = {
        "shape": torch.zeros(24, 11),
        "dtype": torch.zeros(11, 24, dtype=torch.float16),
        "meta": torch.zeros(11, 24, device="meta"),
        "subclass": Pair(torch.zeros(11, 24), torch.zeros(11, 24)),
        "sparse": torch.zeros(11, 24).to_sparse(),
        "repeated": torch.zeros(11, 1).expand(11, 24),
        "text": "text",
    }[change]
    return target


@pytest.mark.parametrize(
    ("change", "error"),
    [("shape", InputError), ("dtype", DtypeError), ("meta", UnsupportedError), ("subclass", UnsupportedError),
     ("sparse", UnsupportedError), ("repeated", InputError), ("text", DtypeError)],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named_before_any_is_filled(change: str, error: type, packed: Path) -> None:
    target = emptied(change)
    with pytest.raises(error, match=r"'head\.weight'"):
        memsys.unpack_weights(packed, target)
    assert not any(tensor.any() for name, tensor in target.items() if name != "head.weight")


def test_names_that_do_not_fit(packed: Path) -> None:
    model = relu_model()
    model.more = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"'more\.weight'"):
        memsys.unpack_weights(packed, model)
    del model.more, model.head
    with pytest.raises(InputError, match=r"'head\.weight'"):
        memsys.unpack_weights(packed, model)
    with pytest.raises(InputError, match="'stray'"):
        memsys.unpack_weights(packed, {"stray": torch.ones(1)})
    with pytest.raises(DtypeError, match="a path, a module or a dict"):
        memsys.unpack_weights(packed, 3)


def test_a_bad_tensor_is_not_filled(packed: Path) -> None:
    name, offset = first_tensor(packed.read_bytes())
    packed.write_bytes(flipped(packed.read_bytes(), offset * 8))
    target = {name: torch.zeros(11, 24)}
    with pytest.raises(CorruptionError, match=f"'{name}'.*{offset}"):
        memsys.unpack_weights(packed, target)
    assert list(target) == [name] and not target[name].any()


def test_the_old_file_stays_whole(packed: Path, tmp_path: Path) -> None:
    """At a bad source, and at an interruption; nothing else is left."""
    target = tmp_path / "plain.safetensors"
    target.write_bytes(b"old")
    packed.write_bytes(flipped(packed.read_bytes(), first_tensor(packed.read_bytes())[1] * 8))
    with pytest.raises(CorruptionError):
        memsys.unpack_weights(packed, target)
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["packed.safetensors", "plain.safetensors"]


def test_onto_itself(packed: Path) -> None:
    memsys.unpack_weights(packed, packed)
    assert_same_bits(load_file(packed), relu_model().state_dict())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match=r"none\.safetensors"):
        memsys.unpack_weights(tmp_path / "none.safetensors", {})


@pytest.mark.gpu
def test_tensors_of_a_device(tmp_path: Path) -> None:
    """Brought over one at a time, in both directions."""
    model, again = relu_model().cuda(), relu_model().cuda()
    memsys.pack_weights(model, tmp_path / "packed.safetensors")
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    memsys.unpack_weights(tmp_path / "packed.safetensors", again)
    assert all(tensor.is_cuda for tensor in again.state_dict().values())
    assert_same_bits({name: tensor.cpu() for name, tensor in again.state_dict().items()}, relu_model().state_dict())
