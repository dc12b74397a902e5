"""Small ReLU networks and the packed files that hold their bundles, for the tests of streamed rows."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memsys import _C
from memsys.runtimes import runtime_for
from memsys.weights.ffn_rows import BundlePlace

PAGE_BYTES = 4096


class Net(nn.Module):
    """down(relu(up(x))), or down(relu(gate(x)) * up(x)); biases make most neurons silent."""

    def __init__(
        self, d: int, n: int, *, gated: bool = False, bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        options = {"bias": bias, "dtype": dtype}
        self.up = nn.Linear(d, n, **options)
        self.gate = nn.Linear(d, n, **options) if gated else None
        self.down = nn.Linear(n, d, **options)
        predictor = self.gate if gated else self.up
        if bias:
            with torch.no_grad():
                predictor.bias -= 0.8
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(torch.relu(self.up(x)))
        return self.down(torch.relu(self.gate(x)) * self.up(x))

    def parts(self) -> dict[str, Tensor]:
        """The rows of each part, (n, d), in the order of the bundle."""
        gate = {} if self.gate is None else {"gate": self.gate.weight}
        return {"up": self.up.weight, **gate, "down": self.down.weight.t()}


def bundle_place(net: Net, path: Path, runtime: object | None = None, verify: object = _C.Verify.first) -> BundlePlace:
    """Writes the network's bundle as an ordinary safetensors file and opens it, with checksums where they fit pages."""
    parts = net.parts()
    rows, columns = net.up.weight.shape
    dtype = net.up.weight.dtype
    part_bytes = columns * dtype.itemsize
    stride_bytes = -(-len(parts) * part_bytes // PAGE_BYTES) * PAGE_BYTES
    bundle = torch.zeros(rows, stride_bytes // dtype.itemsize, dtype=dtype)
    for place, part in enumerate(parts.values()):
        bundle[:, place * columns : (place + 1) * columns] = part
    save_file({"bundle": bundle}, path)
    _align(path)
    unit_bytes = part_bytes if part_bytes % PAGE_BYTES == 0 else stride_bytes
    file = _C.WeightFile(runtime or runtime_for(torch.device("cpu"))[0], str(path), verify=verify)
    (entry,) = file.tensors
    raw = bundle.view(torch.uint8).flatten().numpy().tobytes()
    crc = [_C.crc32c(raw[begin : begin + unit_bytes]) for begin in range(0, len(raw), unit_bytes)]
    file.set_checksums(entry["offset"], len(raw), unit_bytes, b"".join(value.to_bytes(4, "little") for value in crc))
    return BundlePlace(file, entry["offset"], rows, columns, dtype, tuple(parts), stride_bytes, unit_bytes)


def _align(path: Path) -> None:
    """Pads the file's header with spaces, so that its one tensor begins on a page."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    length = -(-end // PAGE_BYTES) * PAGE_BYTES - 8
    path.write_bytes(length.to_bytes(8, "little") + content[8:end].ljust(length) + content[end:])
