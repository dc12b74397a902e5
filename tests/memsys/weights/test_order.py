"""The order of use, told from names alone."""

import random

from built import needs_memsys

needs_memsys()

from memsys.weights.order import order_by_use  # noqa: E402


def ordered(*names: str) -> list[str]:
    return [names[place] for place in order_by_use(names)]


def test_layers_go_by_number() -> None:
    assert ordered("h.10.w", "h.2.w", "h.0.w", "h.2.b") == ["h.0.w", "h.2.w", "h.2.b", "h.10.w"]


def test_what_is_around_the_layers() -> None:
    """Where a file sorted by names put them does not matter for names that tell; for others it does."""
    wanted = ["wte.weight", "wpe.weight", "h.0.w", "h.1.w", "ln_f.weight", "lm_head.weight"]
    assert ordered(*wanted) == wanted
    assert ordered("h.0.w", "h.1.w", "ln_f.weight", "wpe.weight", "wte.weight")[:2] == ["wpe.weight", "wte.weight"]
    assert ordered("lm_head.weight", "model.layers.0.w", "model.norm.w")[0] == "model.layers.0.w"
    assert ordered("stem.w", "blocks.0.w", "out.w") == ["stem.w", "blocks.0.w", "out.w"]


def test_the_encoder_goes_first() -> None:
    names = ["model.decoder.layers.0.w", "model.decoder.layers.1.w", "model.encoder.layers.0.w"]
    assert ordered(*names) == [names[2], names[0], names[1]]


def test_experts_stay_in_their_layer() -> None:
    names = ["layers.0.experts.0.w", "layers.0.experts.1.w", "layers.1.experts.0.w", "layers.1.experts.1.w"]
    assert ordered(*names[::-1]) == [names[1], names[0], names[3], names[2]]


def test_no_layers() -> None:
    assert ordered("b", "a") == ["b", "a"]
    assert ordered() == []


def test_every_name_keeps_its_place_once() -> None:
    draw = random.Random(3)
    names = [".".join(draw.choices(["a", "embed", "1", "22", "head", "²", "9" * 30], k=3)) for _ in range(300)]
    assert sorted(order_by_use(names)) == list(range(300))
