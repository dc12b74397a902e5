"""FSDP2 with offload: bit-exact, and no weight moves.

FSDP2 gives each layer its whole weights just before its forward, in storages that it empties again after: what looks
like an activation may be a weight, and what is held may be gone.
"""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys
from torch import multiprocessing, nn

needs_memsys()

from gradients import assert_idle, assert_same, small_input, small_model  # noqa: E402

import memsys  # noqa: E402


def sharded(reshard_after_forward: bool) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = small_model()
    for layer in model:
        fully_shard(layer, reshard_after_forward=reshard_after_forward)
    return fully_shard(model, reshard_after_forward=reshard_after_forward)


def local_step(model: nn.Module, rank: int) -> list[torch.Tensor]:
    """Loss and this rank's gradient shards of one step on this rank's batch."""
    model.zero_grad()
    loss = model(small_input(rank)[:48]).square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad.to_local().clone() for parameter in model.parameters())]


def train(rank: int, world_size: int, folder: str, reshard_after_forward: bool) -> None:
    """One rank: the same three steps on twins, with and without memsys."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        plain, model = sharded(reshard_after_forward), sharded(reshard_after_forward)
        weight_shapes = {shape for p in plain.parameters() if p.dim() == 2 for shape in (p.shape, p.t().shape)}
        moved = []

        def policy(saved):
            moved.append(saved)
            return memsys.FILE

        memsys.offload(model, policy=policy, min_bytes=1, spill_dir=folder)
        optimizers = [torch.optim.SGD(twin.parameters(), lr=0.1) for twin in (plain, model)]
        for _ in range(3):
            assert_same(local_step(model, rank), local_step(plain, rank))
            for optimizer in optimizers:
                optimizer.step()
        assert memsys.stats(model).packed_count > 0
        # The batch has 48 rows, so that no activation has a weight's shape.
        assert [saved for saved in moved if saved.shape in weight_shapes] == []
        assert_idle(model)
        memsys.restore(model)
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reshard_after_forward", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
def test_fully_sharded(world_size, reshard_after_forward, tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP2")
    arguments = (world_size, str(tmp_path), reshard_after_forward)
    multiprocessing.spawn(train, arguments, nprocs=world_size)
