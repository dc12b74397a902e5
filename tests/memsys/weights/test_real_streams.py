"""Real models behind their files: translations, sentence vectors and activations as those of the resident models."""

from __future__ import annotations

import marian
import minilm
import pytest
import torch

import memsys

TEXTS = [
    "How are you today?",
    "The cat sleeps on the old chair.",
    "Whoever signs this contract agrees to pay the rent.",
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> str:
    marian.needs_marian()
    path = str(tmp_path_factory.mktemp("marian") / "translator.safetensors")
    memsys.pack_weights(marian.load(), path)
    return path


@pytest.fixture(scope="module")
def wanted(packed: str) -> list[str]:
    model = marian.load()
    return [model.translate(text) for text in TEXTS]


def logits_of(model: torch.nn.Module, resident: torch.nn.Module, text: str) -> torch.Tensor:
    """Of each token of the resident model's translation."""
    source = resident.tokens(text)
    target = torch.tensor([[*resident.generate(source), marian.END]])
    with torch.no_grad():
        return model(source, target)


def test_a_translator_by_a_window_of_layers(packed: str, wanted: list[str]) -> None:
    model = memsys.stream(marian.load(), packed, window=2)
    assert memsys.stream_stats(model).block_count == marian.ENCODER_LAYERS + marian.DECODER_LAYERS
    assert [model.translate(text) for text in TEXTS] == wanted
    resident = marian.load()
    assert torch.equal(logits_of(model, resident, TEXTS[2]), logits_of(resident, resident, TEXTS[2]))


@pytest.mark.parametrize("layout", ["zero_filled", "compacted"])
def test_a_translator_by_rows_is_exact(layout: str, packed: str, wanted: list[str]) -> None:
    """Translations are the resident model's; in the zero-filled layout every logit is, to the last bit."""
    model = memsys.windowed_ffn(marian.load(), packed, layout=layout, capacity_rows=marian.NEURONS)
    assert [model.translate(text) for text in TEXTS] == wanted
    resident = marian.load()
    found, dense = logits_of(model, resident, TEXTS[2]), logits_of(resident, resident, TEXTS[2])
    assert torch.equal(found, dense) if layout == "zero_filled" else torch.allclose(found, dense, atol=1e-3)


def test_each_rung_reads_less_a_token(packed: str) -> None:
    """All rows, those that are active, and those that were not among the last tokens' either: bytes that were read."""
    text = TEXTS[2]
    reads = {}
    for window in (1, 4):
        model = memsys.windowed_ffn(marian.load(), packed, window_tokens=window, capacity_rows=marian.NEURONS)
        count = len(model.generate(model.tokens(text))) + 1
        reads[window] = memsys.ffn_stats(model)["read_bytes"]
    # The encoder is called once, with all tokens; the decoder once a token.
    calls = marian.ENCODER_LAYERS + marian.DECODER_LAYERS * count
    everything = calls * marian.NEURONS * 4096  # a row of a bundle takes a page
    assert everything > reads[1] > 1.2 * reads[4] > 0


def test_a_sentence_model_by_a_window_of_layers(tmp_path) -> None:
    minilm.needs_minilm()
    path = str(tmp_path / "minilm.safetensors")
    resident = minilm.load()
    memsys.pack_weights(resident, path)
    with torch.device("meta"):
        empty = type(resident)(resident.config).eval()
    for module, other in zip(
        empty.modules(), resident.modules(), strict=True
    ):  # what no file holds and no config gives
        for name, buffer in other.named_buffers(recurse=False):
            module._buffers[name] = buffer.clone()
    model = memsys.stream(empty, path, window=2)
    found, wanted = (minilm.sentence_vectors(one, TEXTS) for one in (model, resident))
    assert torch.equal(found, wanted)
