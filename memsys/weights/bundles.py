"""Feed-forward networks with ReLU, and how their rows lie together in a file (LLM in a flash, section 3.2).

Row i of a bundle holds all that neuron i needs: its up row, its gate row if there is a gate, its down column. One read
brings a neuron, where the dense tensors would need a read of every row of `down`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from memsys._dtypes import DTYPES
from memsys.errors import InputError

ALIGNMENT_BYTES = 4096
BUNDLE_SUFFIX = "memsys_bundle"
# The names of up, gate and down in one module; without the gate's tensor the network is ungated.
_NAMES = (("fc1", None, "fc2"), ("up_proj", "gate_proj", "down_proj"), ("c_fc", None, "c_proj"),
          ("linear1", None, "linear2"))  # fmt: skip
# Numbers that are the weights themselves: what is quantized further needs scales beside them.
_BUNDLED = {"F16", "BF16", "F32", "F64"}
# Where a configuration names the activation.
_ACTIVATION_KEYS = ("activation_function", "hidden_act", "hidden_activation")


class Facts(NamedTuple):
    """What a header says of a tensor; `dtype` is its safetensors name."""

    dtype: str
    shape: tuple[int, ...]


class Ffn(NamedTuple):
    """A feed-forward network with ReLU: the names of its tensors by part, and which of them hold columns as rows."""

    prefix: str
    tensors: dict[str, str]
    is_transposed: dict[str, bool]


class Bundle(NamedTuple):
    """How a bundle tensor is made up; `part_bytes` is one row of one part, `stride_bytes` one row of the bundle."""

    parts: tuple[str, ...]
    tensors: dict[str, str]
    rows: int
    columns: int
    part_bytes: int
    stride_bytes: int
    is_transposed: dict[str, bool]
    dtype: str
    activation: str

    @property
    def unit_bytes(self) -> int:
        """The span that one checksum covers: a part where parts lie on pages, else the row."""
        return self.part_bytes if self.part_bytes % ALIGNMENT_BYTES == 0 else self.stride_bytes

    @property
    def facts(self) -> Facts:
        return Facts(self.dtype, (self.rows, self.stride_bytes // DTYPES[self.dtype].itemsize))


def bundle_name(ffn: Ffn) -> str:
    return f"{ffn.prefix}.{BUNDLE_SUFFIX}" if ffn.prefix else BUNDLE_SUFFIX


def bundle_of(ffn: Ffn, facts: Mapping[str, Facts]) -> Bundle:
    """How the network is bundled. Raises InputError where its tensors do not fit together."""
    parts = tuple(part for part in ("up", "gate", "down") if part in ffn.tensors)
    shapes, dtypes = {}, set()
    for part in parts:
        found = facts.get(ffn.tensors[part])
        if found is None or len(found.shape) != 2:
            raise InputError(f"{ffn.tensors[part]!r}: wanted a matrix to bundle, found {found}; use bundle_ffn=False")
        shapes[part] = found.shape[::-1] if ffn.is_transposed[part] else found.shape
        dtypes.add(found.dtype)
    if len(set(shapes.values())) != 1 or len(dtypes) != 1 or not dtypes <= _BUNDLED or 0 in shapes["up"]:
        raise InputError(f"{ffn.prefix or 'the network'}: wanted up, gate and down of one float dtype and of as many "
                         f"rows of as many columns, found {shapes} of {sorted(dtypes)}; "
                         "use bundle_ffn=False")  # fmt: skip
    rows, columns = shapes["up"]
    dtype = dtypes.pop()
    part_bytes = columns * DTYPES[dtype].itemsize
    stride_bytes = -(-len(parts) * part_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return Bundle(parts, dict(ffn.tensors), rows, columns, part_bytes, stride_bytes, dict(ffn.is_transposed), dtype,
                  "relu")  # fmt: skip


def rows_of_bundle(bundle: Bundle, dense: Mapping[str, torch.Tensor], chunk_bytes: int) -> Iterator[torch.Tensor]:
    """The bundle's bytes, some rows at a time: (rows, stride_bytes) of uint8. The tensor is written over by the next.

    `dense` holds the network's tensors by part, as the source has them.
    """
    item_bytes = DTYPES[bundle.dtype].itemsize
    rows_of = {part: dense[part].t() if bundle.is_transposed[part] else dense[part] for part in bundle.parts}
    step = max(1, chunk_bytes // bundle.stride_bytes)
    room = torch.zeros(min(step, bundle.rows), bundle.stride_bytes, dtype=torch.uint8)
    target = room.view(_carrier(item_bytes))
    for begin in range(0, bundle.rows, step):
        count = min(step, bundle.rows - begin)
        for place, part in enumerate(bundle.parts):
            columns = slice(place * bundle.columns, (place + 1) * bundle.columns)
            # Bits, not numbers: an integer of that size keeps a NaN's payload.
            target[:count, columns] = rows_of[part][begin : begin + count].view(_carrier(item_bytes))
        yield room[:count]


def _carrier(item_bytes: int) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[item_bytes]


def networks_of_model(model: torch.nn.Module) -> list[Ffn]:
    """The ReLU networks of a module whose parts are nn.Linear, or transformers' Conv1D, which holds transposes."""
    config = getattr(model, "config", None)
    found = []
    for prefix, module in model.named_modules():
        children = dict(module.named_children())
        for up, gate, down in _NAMES:
            if up not in children or down not in children or not _is_relu_module(module, config):
                continue
            names = {"up": up, "gate": gate, "down": down} if gate in children else {"up": up, "down": down}
            kinds = {part: _is_transposed_module(children[name]) for part, name in names.items()}
            if None not in kinds.values():
                found.append(_network(prefix, names, {part: kind for part, kind in kinds.items() if kind is not None}))
    return found


def networks_of_names(facts: Mapping[str, Facts], config: Mapping[str, object]) -> list[Ffn]:
    """The ReLU networks of a checkpoint, told by its tensors' names and its config.json."""
    # A model of several parts has a configuration for each, and no name tells which part a tensor belongs to.
    is_nested = any(isinstance(value, dict) for key, value in config.items() if key.endswith("_config")
                    and key != "quantization_config")  # fmt: skip
    if is_nested or not _is_relu_config(config.get):
        return []
    found = []
    for prefix in dict.fromkeys(_parents(facts)):
        dot = prefix and prefix + "."
        for up, gate, down in _NAMES:
            names = {"up": up, "gate": gate, "down": down}
            if f"{dot}{gate}.weight" not in facts:
                del names["gate"]
            if any(f"{dot}{name}.weight" not in facts for name in names.values()):
                continue
            kinds = _is_transposed_by_bias(dot, names, facts)
            if kinds is not None:
                found.append(_network(prefix, names, kinds))
    return found


def _network(prefix: str, names: Mapping[str, str], stored_transposed: Mapping[str, bool]) -> Ffn:
    dot = prefix and prefix + "."
    tensors = {part: f"{dot}{name}.weight" for part, name in names.items()}
    # A neuron is a row of a Linear's up weight, and a column of its down weight.
    return Ffn(prefix, tensors, {part: stored_transposed[part] != (part == "down") for part in names})


def _parents(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = name.rsplit(".", 2)
        if parts[-1] == "weight" and len(parts) >= 2:
            yield parts[0] if len(parts) == 3 else ""


def _is_relu_module(module: torch.nn.Module, config: object) -> bool:
    """By the activation that the module holds; by the model's configuration where it holds none."""
    for name in ("activation_fn", "act_fn", "act", "activation"):
        held = getattr(module, name, None)
        if held is not None:
            return type(held) is torch.nn.ReLU or held is torch.nn.functional.relu or held is torch.relu
    return _is_relu_config(lambda key: getattr(config, key, None))


def _is_relu_config(get: object) -> bool:
    named = [value for key in _ACTIVATION_KEYS if (value := get(key)) is not None]
    return bool(named) and all(value == "relu" for value in named)


def _is_transposed_module(module: torch.nn.Module) -> bool | None:
    """Whether a layer's weight is (inputs, outputs); None for what is neither kind."""
    if type(module) is torch.nn.Linear:
        return False
    is_conv1d = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return True if is_conv1d else None


def _is_transposed_by_bias(dot: str, names: Mapping[str, str], facts: Mapping[str, Facts]) -> dict[str, bool] | None:
    """Of names that both a Linear and a Conv1D go by, the up bias, as long as there are neurons, tells which it is."""
    if names["up"] != "c_fc":
        return dict.fromkeys(names, False)
    bias, weight = facts.get(f"{dot}c_fc.bias"), facts[f"{dot}c_fc.weight"]
    if bias is None or len(bias.shape) != 1 or len(weight.shape) != 2 or weight.shape[0] == weight.shape[1]:
        return None
    return dict.fromkeys(names, bias.shape[0] == weight.shape[1])
