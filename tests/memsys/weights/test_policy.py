"""memsys.stream by policy: what coverage measured decides, or the user does."""

from __future__ import annotations

from pathlib import Path

import marian
import pytest
import torch

import memsys
from memsys import InputError, UnsupportedError
from memsys.weights.ffn_parts import WindowedDown


class Block(torch.nn.Module):
    """A ReLU network of which few neurons are active."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(64, 512)
        self.activation_fn = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(512, 64)
        torch.nn.init.constant_(self.fc1.bias, -1.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.activation_fn(self.fc1(x)))


def made() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(Block() for _ in range(4))).eval()


def tokens(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 1, 64, generator=generator) for _ in range(count)]


def generating(model: torch.nn.Module) -> memsys.CoverageReport:
    """Of one sequence, a token a call."""
    return memsys.coverage(model, [tokens(40)], run=lambda batch: [model(token) for token in batch], ffn_budget="90%")


def is_by_rows(model: torch.nn.Module) -> bool:
    return any(isinstance(module, WindowedDown) for module in model.modules())


@pytest.fixture
def packed(tmp_path: Path) -> str:
    memsys.pack_weights(made(), tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def test_auto_follows_what_coverage_said(packed: str) -> None:
    resident, model = made(), made()
    report = generating(model)
    assert report.advice.way == "rows", str(report)
    memsys.stream(model, packed)
    assert is_by_rows(model)
    for token in tokens(5):
        with torch.no_grad():
            assert torch.equal(model(token), resident(token))
    with pytest.raises(InputError, match="ffn_stats"):
        memsys.stream_stats(model)
    with pytest.raises(UnsupportedError, match="again from its file"):
        memsys.restore(model)


def test_a_report_decides_for_another_model_of_the_kind(packed: str) -> None:
    by_token, by_batch = generating(made()), memsys.coverage(made(), [torch.randn(8, 64, 64)])
    assert is_by_rows(memsys.stream(made(), packed, policy=by_token))
    model = memsys.stream(made(), packed, policy=by_batch, window=2)
    assert not is_by_rows(model)
    assert memsys.stream_stats(model).window_layers == 2


def test_auto_without_coverage_is_layers_and_policies_are_obeyed(packed: str) -> None:
    assert not is_by_rows(memsys.stream(made(), packed))
    assert is_by_rows(memsys.stream(made(), packed, policy="rows"))
    model = made()
    generating(model)
    assert not is_by_rows(memsys.stream(model, packed, policy="layers"))


def test_rows_need_bundles(tmp_path: Path) -> None:
    memsys.pack_weights(made(), tmp_path / "model.safetensors", bundle_ffn=False)
    with pytest.raises(InputError, match="bundle_ffn"):
        memsys.stream(made(), tmp_path / "model.safetensors", policy="rows")


def test_a_translator_on_no_memory_by_rows(tmp_path: Path) -> None:
    marian.needs_marian()
    resident = marian.load()
    memsys.pack_weights(resident, tmp_path / "translator.safetensors")
    model = marian.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all of it comes from the file
    memsys.stream(model, tmp_path / "translator.safetensors", policy="rows")
    assert model.translate("How are you today?") == resident.translate("How are you today?")
