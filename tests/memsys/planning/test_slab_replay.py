"""Steps of real models on a real slab: every block keeps its pattern, and the slab is hardly larger than what lives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from address_models import MODELS

from memsys import _C
from memsys.activations.allocations import live_peak, record_allocations
from memsys.errors import CorruptionError
from memsys.planning import slab_replay
from memsys.planning.addresses import AddressPlan, plan_addresses
from memsys.planning.caching_model import replay_classic, replay_expandable
from memsys.planning.slab_replay import replay_on_slab
from memsys.planning.trace import Request
from memsys.runtimes import runtime_for

RUNTIME, _ = runtime_for(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_real_step_is_served_as_planned(name: str) -> None:
    torch.manual_seed(0)
    model, step = MODELS[name]()
    with record_allocations(model) as record:
        step().backward()
    requests = record.requests
    plan = plan_addresses(requests)
    assert plan.bound_bytes == max(plan.bound_bytes, live_peak(requests))
    assert plan.gap <= 0.02
    assert plan.blocks and all(block.gap <= 0.02 for block in plan.blocks)
    served = replay_on_slab(plan, RUNTIME)
    assert served.miss_count == 0 and served.hit_count == 2 * len(requests)
    assert served.upstream_count == 1
    assert served.live_peak_bytes == record.peak_bytes
    assert served.ratio <= 1.02
    for model_of in (replay_classic, replay_expandable):
        assert served.ratio <= model_of(requests).ratio


def small_plan() -> AddressPlan:
    return plan_addresses([Request(1000 + 100 * i, i, i + 4) for i in range(20)])


def test_an_overlap_is_found(monkeypatch) -> None:
    """Without the slab's own check, by the patterns."""
    plan = small_plan()
    memory = torch.empty(plan.peak_bytes, dtype=torch.uint8)

    class Careless:
        """Serves any place, whether it is in use or not."""

        def __init__(self, runtime: object, bytes_: list[int], offsets: list[int], slab_bytes: int) -> None:
            self.places = iter(offsets * 2)

        def allocate(self, bytes_: int) -> int:
            return memory.data_ptr() + next(self.places)

        def stats(self) -> dict[str, int]:
            return dict.fromkeys(RUNTIME_STATS, 0)

        def __getattr__(self, name: str):
            return lambda *_: None

    RUNTIME_STATS = _C.PlannedSlab(RUNTIME, [512], [0], 512).stats()
    monkeypatch.setattr(slab_replay._C, "PlannedSlab", Careless)
    replay_on_slab(plan, RUNTIME)
    with pytest.raises(CorruptionError, match="lost its pattern"):
        replay_on_slab(replace(plan, offsets=(0,) * len(plan.offsets)), RUNTIME)


def test_the_slab_serves_what_a_wrong_plan_would_break() -> None:
    plan = small_plan()
    wrong = replace(plan, offsets=(0,) * len(plan.offsets))
    served = replay_on_slab(wrong, RUNTIME)
    assert served.miss_count > 0 and served.hit_count + served.miss_count == 40
