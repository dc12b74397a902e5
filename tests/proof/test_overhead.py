"""What memsys costs those who do not use it: nothing while it is restored, and little where it is on and moves nothing.

Measured in the processor time of a process, in pairs of steps, so that what else runs on the machine weighs little.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from built import needs_memsys

needs_memsys()

import fresh_process  # noqa: E402
import proof  # noqa: E402
from gradients import small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys import _tensor  # noqa: E402
from memsys.cli.run import Run  # noqa: E402
from memsys.cli.setting import Setting  # noqa: E402

pytestmark = pytest.mark.proof

NOTHING = 1 << 62  # as min_bytes: larger than any tensor
SETTING = Setting(layers=4, width=512, seq=512, device="cpu")
PAIRS, IMPORTS = 60, 9
IMPORT = """
import time, torch
begin, wall = time.process_time(), time.perf_counter()
import memsys
print((time.process_time() - begin) * 1e3, (time.perf_counter() - wall) * 1e3)
"""
UNTOUCHED = """
import torch
from torch import nn
watched = {nn.Module: dict(vars(nn.Module)), torch.optim.Optimizer: dict(vars(torch.optim.Optimizer)),
           torch.Tensor: dict(vars(torch.Tensor)), torch.autograd: dict(vars(torch.autograd))}
import signal
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
import memsys
for place, before in watched.items():
    assert all(vars(place)[name] is value for name, value in before.items()), place
assert handlers == [signal.getsignal(number) for number in signal.valid_signals()]
print("untouched")
"""


def step_ratios(pairs: int) -> list[float]:
    """An offloaded model's step of which nothing moves over the plain model's, for each pair but the first."""
    plain, wrapped = Run.build(SETTING), Run.build(SETTING)
    memsys.offload(wrapped.model, min_bytes=NOTHING)
    ratios = []
    for turn in range(pairs + 1):
        seconds = {}
        for way in (plain, wrapped) if turn % 2 else (wrapped, plain):
            begin = time.process_time()
            way.step(turn)
            seconds[way is wrapped] = time.process_time() - begin
        ratios.append(seconds[True] / seconds[False])
    assert memsys.stats(wrapped.model).packed_count == 0
    memsys.restore(wrapped.model)
    return ratios[1:]


def test_a_restored_model_is_as_if_never_offloaded(tmp_path):
    seen = []
    model = small_model()
    model[0].register_forward_hook(lambda *_: seen.append(_tensor.top_hooks()))
    memsys.offload(model, policy="all", min_bytes=1, spill_dir=tmp_path)
    step(model, small_input())
    memsys.restore(model)
    step(model, small_input())
    assert seen[0] is not None and seen[1] is None
    assert "forward" not in vars(model)


def test_importing_memsys_changes_nothing_of_torch():
    assert fresh_process.output_of(UNTOUCHED).strip() == "untouched"


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_little_is_lost_where_nothing_moves():
    begin = time.monotonic()
    torch.set_num_threads(1)
    ratios = step_ratios(PAIRS)
    imports = [[float(word) for word in fresh_process.output_of(IMPORT).split()] for _ in range(IMPORTS)]
    lost = statistics.median(ratios) - 1
    import_ms, wall_ms = (statistics.median(column) for column in zip(*imports, strict=True))
    quarters = statistics.quantiles(ratios, n=4)
    proof.record(
        "R12", "overhead", measure="a step of which nothing moves, to the plain step; import memsys after torch",
        figure=f"{lost:+.2%} of a step (median of {PAIRS} pairs, processor time); {import_ms:.0f} ms",
        target="under 1 %; under 100 ms", is_met=lost < 0.01 and import_ms < 100, seconds=time.monotonic() - begin,
        quartiles=quarters, import_wall_ms=wall_ms,
    )  # fmt: skip
    assert lost < 0.1, ratios
