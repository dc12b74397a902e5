"""The real models that the streaming tests use are what they claim to be: they translate, and they compare texts."""

from __future__ import annotations

import marian
import minilm
import pytest
import torch


@pytest.mark.parametrize(
    ("direction", "text", "translation"),
    [
        ("en-pt", "How are you today?", "Como você está hoje?"),
        ("en-pt", "The cat sleeps on the old chair.", "O gato dorme na cadeira velha."),
        ("pt-en", "Como você está hoje?", "How are you today?"),
    ],
)
def test_the_translator_translates(direction: str, text: str, translation: str) -> None:
    marian.needs_marian()
    assert marian.load(direction).translate(text) == translation


def test_the_translator_is_the_same_token_by_token_and_at_once() -> None:
    marian.needs_marian()
    model = marian.load()
    source = model.tokens("I would like a cup of coffee, please.")
    target = torch.tensor([[*model.generate(source), marian.END]])
    assert target.shape[1] > 8
    assert torch.equal(model(source, target).argmax(-1), target)


def test_the_sentence_model_compares_sentences() -> None:
    minilm.needs_minilm()
    texts = ["The cat sleeps on the chair.", "A kitten is napping on a seat.", "Interest rates rose again in March."]
    vectors = minilm.sentence_vectors(minilm.load(), texts)
    near, far = (vectors @ vectors.T)[0, 1:]
    assert near > 0.5
    assert far < 0.2
