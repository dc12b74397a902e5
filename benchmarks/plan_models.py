"""The models that plans are measured on: five kinds, three lengths each, sized for two cores and some hundred MiB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memsys.activations.layers import repeated_layers
from memsys.cli.gpt import GPT, GPTShape
from memsys.planning.trace import StepTrace

MIN_BYTES = 64 << 10
_LENGTHS = {"gpt": (512, 1024, 2048), "llama": (512, 1024, 2048), "encoder": (512, 1024, 2048),
            "perceptron": (2048, 4096, 8192), "convolutions": (8, 16, 32)}  # fmt: skip
GRID = [(name, length) for name, lengths in _LENGTHS.items() for length in lengths]


@dataclass
class Case:
    """A model with its input; `length` is the sequence's, or the batch's where there is no sequence."""

    name: str
    length: int
    model: nn.Module
    args: tuple[Tensor, ...]

    def scalar(self, output: object) -> Tensor:
        output = getattr(output, "logits", output)
        return output.float().square().mean()

    def loss(self, model: nn.Module) -> Tensor:
        return self.scalar(model(*self.args))


def make(name: str, length: int, is_smoke: bool = False) -> Case:
    """The same model and input at every call."""
    torch.manual_seed(0)
    return Case(name, length, *_MAKERS[name](length, 2 if is_smoke else 6, 128 if is_smoke else 256))


def _gpt(length: int, layers: int, width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return GPT(GPTShape(layers=layers, width=width, seq=length)), (torch.randint(256, (2, length)),)


def _llama(length: int, layers: int, width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=256, hidden_size=width, intermediate_size=11 * width // 4,
                         num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 128,
                         max_position_embeddings=length, use_cache=False)  # fmt: skip
    return LlamaForCausalLM(config), (torch.randint(256, (1, length)),)


def _encoder(length: int, layers: int, width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), (torch.randn(1, length, width),)


def _perceptron(length: int, layers: int, width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    blocks = [nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width))
              for _ in range(layers)]  # fmt: skip
    return nn.Sequential(*blocks), (torch.randn(length, width),)


def _convolutions(length: int, layers: int, width: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    channels = width // 8
    blocks = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.SiLU())
              for _ in range(layers)]  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Sequential(*blocks)), (
        torch.randn(length, 3, 64, 64),
    )


_MAKERS: dict[str, Callable[[int, int, int], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "gpt": _gpt,
    "llama": _llama,
    "encoder": _encoder,
    "perceptron": _perceptron,
    "convolutions": _convolutions,
}


def checkpoint_layers(model: nn.Module) -> None:
    """Has each repeated layer run again in backward."""
    for layer in repeated_layers(model):
        layer.forward = _checkpointed(layer.forward)


def _checkpointed(forward: Callable) -> Callable:
    def run(*args: object, **kwargs: object) -> object:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def checkpoint_peak(trace: StepTrace) -> int:
    """What a step saves at most at once where each layer runs again: the layers' inputs, what lies outside of layers,
    and the rest of the largest layer."""
    rest: dict[int, int] = {}
    kept = 0
    for span in trace.spans:
        if span.layer < 0 or span.is_layer_input:
            kept += span.bytes
        else:
            rest[span.layer] = rest.get(span.layer, 0) + span.bytes
    return kept + max(rest.values(), default=0)
