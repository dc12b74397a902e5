"""The reference GPT, its text, and the estimate of what it saves."""

from __future__ import annotations

import math

import pytest
import torch

from memsys.cli.gpt import GPT, Block, GPTShape, ShapeError, parameter_count
from memsys.cli.saved import estimate_saved_bytes
from memsys.cli.text import Text, TextError, standard_library_text

SHAPE = GPTShape(layers=2, width=128, seq=64)


def make_batch(seq: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(256, (1, seq + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def saved_by(function, *args) -> list[torch.Tensor]:
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*args)
    return saved


def storage_bytes(tensors: list[torch.Tensor], model: torch.nn.Module) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    for parameter in model.parameters():
        storages.pop(id(parameter.untyped_storage()), None)
    return sum(storage.nbytes() for storage in storages.values())


def test_shapes_and_first_loss():
    torch.manual_seed(0)
    model = GPT(SHAPE)
    tokens, targets = make_batch()
    assert model(tokens).shape == (1, 64, 256)
    loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - math.log(256)) < 0.3  # knows nothing yet


def test_no_byte_sees_its_future():
    torch.manual_seed(0)
    model = GPT(SHAPE)
    tokens, _ = make_batch()
    changed = tokens.clone()
    changed[0, 40] = (changed[0, 40] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_a_tied_head_is_the_embedding():
    tied = GPT(GPTShape(layers=1, width=64, seq=8, tied_head=True))
    assert tied.head.weight is tied.bytes.weight
    assert parameter_count(GPT(GPTShape(layers=1, width=64, seq=8))) - parameter_count(tied) == 256 * 64


def test_a_width_that_is_no_multiple_of_a_head_is_refused():
    with pytest.raises(ShapeError, match="width 100 is not a multiple of 64"):
        GPTShape(width=100)


def test_a_layer_saves_24_tensors_of_about_16_units():
    block, x = Block(512), torch.randn(1, 256, 512, requires_grad=True)
    saved = saved_by(block, x)
    assert len(saved) == 24
    assert storage_bytes(saved, block) / (256 * 512 * 4) == pytest.approx(16, abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_what_is_saved(dtype):
    model, (tokens, targets) = GPT(GPTShape(layers=3, width=256, seq=512)).to(dtype), make_batch(512)
    wanted = storage_bytes(saved_by(model, tokens, targets), model)
    assert estimate_saved_bytes(model, tokens, targets) == pytest.approx(wanted, rel=0.01)


def test_the_standard_library_is_text_and_the_same_twice():
    text = standard_library_text()
    assert len(text) > 1_000_000
    assert b"def " in text
    assert text == standard_library_text()


def test_files_are_joined_in_sorted_order_without_tests(tmp_path):
    (tmp_path / "b.py").write_text("2")
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "notes.txt").write_text("x")
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "c.py").write_text("x")
    assert standard_library_text(tmp_path) == b"12"
    with pytest.raises(TextError, match="--data FILE"):
        standard_library_text(tmp_path / "nowhere")


def test_batches_follow_seed_and_step():
    text = Text(bytes(range(256)) * 4, "counting")
    tokens, targets = text.batch(3, 2, 16, seed=5)
    assert tokens.shape == targets.shape == (2, 16)
    assert torch.equal(targets, (tokens + 1) % 256)
    assert torch.equal(tokens, text.batch(3, 2, 16, seed=5)[0])
    assert not torch.equal(tokens, text.batch(4, 2, 16, seed=5)[0])
    assert not torch.equal(tokens, text.batch(3, 2, 16, seed=6)[0])


def test_a_short_or_empty_text_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    for text in (Text(b"abc", "short"), Text.load(str(tmp_path / "empty"))):
        with pytest.raises(TextError, match="use a longer text"):
            text.batch(0, 1, 16)


def test_the_shortest_text_that_fits_gives_a_batch():
    tokens, targets = Text(b"abcde", "five").batch(0, 1, 4)
    assert bytes(tokens[0].tolist()) + bytes(targets[0, -1:].tolist()) == b"abcde"
