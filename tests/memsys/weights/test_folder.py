"""Names in an index stay in their folder; what is missing, pickled or no index is told by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from safetensors.torch import save_file

needs_memsys()

from memsys import CorruptionError, InputError, SpillError, UnsupportedError, pack_weights  # noqa: E402
from memsys.weights.checked import open_weights  # noqa: E402
from memsys.weights.folder import find_checkpoint  # noqa: E402


def folder_with(tmp_path: Path, shard: str, name: str = "model") -> Path:
    """A folder whose index names one shard, and, beside the folder, a file that it should not reach."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    return folder


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "sub/a.safetensors", "..\\outside.safetensors", "/etc/passwd", "..", "",
     "a\0.safetensors", "a.bin", "a.safetensors/../../outside.safetensors"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(shard: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match=r"index\.json: tensor 'a'"):
        open_weights(folder_with(tmp_path, shard))
    with pytest.raises(CorruptionError, match=r"index\.json: tensor 'a'"):
        open_weights(folder_with(tmp_path, str(tmp_path / "outside.safetensors"), "second"))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "a.safetensors")
    (folder / "a.safetensors").symlink_to("../outside.safetensors")
    with pytest.raises(CorruptionError, match="leads out of its folder"):
        open_weights(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "a.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(CorruptionError, match="leads out of its folder"):
        open_weights(folder)


def test_a_link_inside_the_folder_and_a_download_cache_are_fine(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "a.safetensors")
    save_file({"a": torch.ones(3)}, folder / "real.safetensors")
    (folder / "a.safetensors").symlink_to("real.safetensors")
    assert torch.equal(open_weights(folder).read("a"), torch.ones(3))
    snapshot = folder_with(tmp_path / "cache", "a.safetensors", "snapshots/1234")
    (tmp_path / "cache" / "blobs").mkdir()
    save_file({"a": torch.ones(4)}, tmp_path / "cache" / "blobs" / "5678")
    (snapshot / "a.safetensors").symlink_to("../../blobs/5678")
    assert torch.equal(open_weights(snapshot).read("a"), torch.ones(4))


def test_a_file_given_as_a_link_is_followed(tmp_path: Path) -> None:
    """The caller's own word, unlike an index, is not confined."""
    save_file({"a": torch.ones(3)}, tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    assert torch.equal(open_weights(tmp_path / "link.safetensors").read("a"), torch.ones(3))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "a.ckpt"])
def test_pickles_are_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / name)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UnsupportedError, match="save_pretrained"):
            open_weights(source)
    with pytest.raises(UnsupportedError, match="save_pretrained"):
        pack_weights(tmp_path, tmp_path / "packed.safetensors")


def test_a_pickle_by_another_name_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptionError, match=r"model\.safetensors"):
        open_weights(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SpillError, match="found neither"):
        open_weights(tmp_path)
    with pytest.raises(SpillError, match="no such file"):
        open_weights(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="text"):
        open_weights(os.fsencode(tmp_path))
    with pytest.raises(InputError, match="'first'"):
        open_weights(tmp_path, verify="sometimes")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "[" * 100_000,
     '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'],
)  # fmt: skip
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CorruptionError, match=r"index\.json"):
        open_weights(tmp_path)


def test_an_index_of_any_length_is_not_read(tmp_path: Path, monkeypatch) -> None:
    folder_with(tmp_path, "a.safetensors")
    monkeypatch.setattr("memsys.weights.folder._MAX_JSON_BYTES", 10)
    with pytest.raises(CorruptionError, match=r"index\.json: wanted at most 10 bytes"):
        open_weights(tmp_path / "model")


def test_the_whole_file_goes_before_the_index(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "gone.safetensors")
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"hidden_act": "relu"}')
    found = find_checkpoint(folder)
    assert found.files == (str(folder / "model.safetensors"),) and found.index is None
    assert found.config == {"hidden_act": "relu"}


def test_a_packed_file_in_a_folder(tmp_path: Path) -> None:
    """Packing into a folder of Hugging Face's kind keeps it one."""
    tensors = {"a": torch.ones(3), "b": torch.zeros(5)}
    pack_weights(tensors, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    assert set(weights.entries) == {"a", "b"} and torch.equal(weights.read("a"), torch.ones(3))
    with pytest.raises(InputError, match="'c'"):
        weights.read("c")
