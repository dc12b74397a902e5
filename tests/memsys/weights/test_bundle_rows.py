"""Rows from a packed file: the rows that were packed, no others, and none that is not what was written."""

from __future__ import annotations

from pathlib import Path

import marian
import pytest
import torch
import torch.nn.functional as F
from gradients import assert_same
from torch import nn

import memsys
from memsys.errors import CorruptionError, InputError, UnsupportedError
from memsys.weights.bundle_rows import BundleRows, runs_of
from memsys.weights.checked import open_weights
from memsys.weights.masked import FrozenFfn, masked_ffn


class Ffn(nn.Module):
    """An ungated FFN by the names that packing knows, with about a fifth of its neurons active."""

    def __init__(self, width: int, neurons: int, is_gated: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up_proj, self.act_fn, self.down_proj = nn.Linear(width, neurons), nn.ReLU(), nn.Linear(neurons, width)
        if is_gated:
            self.gate_proj = nn.Linear(width, neurons)
        with torch.no_grad():
            self.up_proj.weight.normal_(std=width**-0.5)
            self.up_proj.bias.fill_(-0.84)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.relu(self.up_proj(x)))


class Model(nn.Module):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__()
        self.mlp = Ffn(*args, **kwargs)


def packed(model: nn.Module, folder: Path) -> Path:
    path = folder / "packed.safetensors"
    memsys.pack_weights(model, path)
    return path


def bundle_of(path: Path) -> BundleRows:
    return BundleRows(open_weights(path), "mlp.memsys_bundle")


def test_runs() -> None:
    assert list(runs_of(torch.tensor([0, 1, 2, 5, 7, 8]))) == [(0, 0, 3), (3, 5, 1), (4, 7, 2)]
    assert list(runs_of(torch.tensor([4]))) == [(0, 4, 1)]
    assert list(runs_of(torch.tensor([], dtype=torch.int64))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_that_were_packed(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Model(48, 100).to(dtype)
    source = bundle_of(packed(model, tmp_path))
    for ids in ([0], [99], [3, 4, 5, 20, 98, 99], list(range(100)), []):
        up, down = source.rows(torch.tensor(ids, dtype=torch.int64))
        assert torch.equal(up, model.mlp.up_proj.weight[ids])
        assert torch.equal(down, model.mlp.down_proj.weight[:, ids].t())
    assert source.row_count == 1 + 1 + 6 + 100


@pytest.mark.parametrize("shape", [(3,), (2, 40)])
def test_the_masked_backward_from_a_file_equals_the_dense_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = Model(64, 500)
    source = bundle_of(packed(model, tmp_path))
    x, grad = torch.randn(*shape, 64), torch.randn(*shape, 64)
    used = int((model.mlp.up_proj(x) > 0).flatten(0, -2).any(0).sum())
    ffn = FrozenFfn.of(model.mlp.up_proj, model.mlp.act_fn, model.mlp.down_proj)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    found = masked_ffn(ours, ffn, source)
    wanted = model.mlp(theirs)
    found.backward(grad)
    wanted.backward(grad)
    assert_same([found, ours.grad], [wanted, theirs.grad])
    assert source.row_count == used
    assert source.read_bytes == used * 4096


def test_every_ffn_of_a_real_model_is_bundled_and_its_masked_backward_exact(tmp_path: Path) -> None:
    marian.needs_marian()
    model = marian.load()
    layers = nn.ModuleDict({"encoder": model.encoder, "decoder": model.decoder})
    weights = open_weights(packed(layers, tmp_path))
    assert len(weights.bundles) == marian.ENCODER_LAYERS + marian.DECODER_LAYERS
    x = model.encode(model.tokens("The tenant must return the keys on the last day of the lease."))
    for name, layer in [("encoder.1", model.encoder[1]), ("decoder.1", model.decoder[1])]:
        source = BundleRows(weights, f"{name}.ffn.memsys_bundle")
        ffn = FrozenFfn.of(layer.ffn.fc1, layer.ffn.activation_fn, layer.ffn.fc2)
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        masked_ffn(ours, ffn, source).square().sum().backward()
        layer.ffn(theirs).square().sum().backward()
        assert torch.equal(ours.grad, theirs.grad)
        assert 100 < source.row_count < marian.NEURONS


def test_a_flipped_bit_in_a_row_is_told_and_others_are_read(tmp_path: Path) -> None:
    path = packed(Model(64, 500), tmp_path)
    offset = open_weights(path).entry("mlp.memsys_bundle").offset
    content = bytearray(path.read_bytes())
    content[offset + 7 * 4096 + 100] ^= 1
    path.write_bytes(content)
    source = bundle_of(path)
    source.rows(torch.tensor([0, 6, 8, 499]))
    with pytest.raises(CorruptionError, match=r"packed\.safetensors"):
        source.rows(torch.tensor([0, 7, 300]))


def test_what_has_no_such_rows_is_refused(tmp_path: Path) -> None:
    path = packed(Model(64, 100, is_gated=True), tmp_path)
    with pytest.raises(UnsupportedError, match="ungated"):
        bundle_of(path)
    with pytest.raises(InputError, match="bundle_ffn=True"):
        BundleRows(open_weights(path), "other.memsys_bundle")
