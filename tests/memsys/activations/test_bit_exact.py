"""Loss and every gradient equal to the last bit, whatever moves where: policies, dtypes, layers, training idioms."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from built import needs_memsys
from torch import nn
from torch.utils.checkpoint import checkpoint

needs_memsys()

from gradients import (  # noqa: E402
    DROPPED,
    TIERS,
    assert_idle,
    assert_same,
    compare,
    gradients,
    offloaded,
    small_input,
    small_model,
    step,
)

import memsys  # noqa: E402
from memsys.activations import mover  # noqa: E402
from memsys.cli.gpt import GPT, GPTShape  # noqa: E402

POLICIES = {
    "all": "all",
    "inputs": "inputs",
    "auto": "auto",
    **TIERS,
    "dropped": DROPPED,
    "mixed": lambda saved: (memsys.KEEP, memsys.HOST, memsys.FILE)[saved.index % 3],
    "by producer": lambda saved: memsys.FILE if saved.is_attention_output or saved.is_layer_input else memsys.HOST,
}


def byte_step(model):
    tokens = torch.randint(256, (1, 129), generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return [loss.detach(), *gradients(model)]


def gpt(dtype=torch.float32):
    torch.manual_seed(0)
    return GPT(GPTShape(layers=3, width=128, seq=128, tied_head=True)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_gpt(policy, dtype, tmp_path):
    # Three steps: the order is learnt in the first backward, "auto" decides from the first forward.
    stats = compare(
        lambda model: [*byte_step(model), *byte_step(model), *byte_step(model)], tmp_path, POLICIES[policy], gpt(dtype)
    )
    assert stats.packed_count > 0 and stats.out_bytes > 0


@pytest.mark.parametrize("options", [{}, {"return_memory": True}, {"device_budget": "3MiB"}], ids=str)
def test_auto_keeps_what_fits_its_share_or_its_budget(options, tmp_path, monkeypatch):
    # Buffers of a large model would leave this one nothing to keep.
    monkeypatch.setattr(mover, "DEFAULT_WINDOW_BYTES", 32 << 10)
    model, twin = gpt(), gpt()
    memsys.offload(model, spill_dir=tmp_path, min_bytes=0, **options)
    moved = []
    for _ in range(3):
        before = memsys.stats(model).out_bytes
        assert_same(byte_step(model), byte_step(twin))
        moved.append(memsys.stats(model).out_bytes - before)
    assert 0 < moved[1] < moved[0]
    assert moved[2] == moved[1]
    assert memsys.stats(model).kept_bytes == 0


def test_what_a_policy_keeps_waits_for_room_in_the_budget(tmp_path):
    # Memory of restored tensors that are gone, and sources on their way out, are no reason to move it after all.
    room, kept = [0], [0]

    def choose(saved):
        if kept[0] + saved.bytes > room[0]:
            return memsys.FILE
        kept[0] += saved.bytes
        return memsys.KEEP

    model, twin = gpt(), gpt()
    memsys.offload(model, policy=choose, spill_dir=tmp_path, min_bytes=0, device_budget="3MiB")
    moved = []
    for room[0] in (0, 2400 << 10, 2400 << 10):
        before, kept[0] = memsys.stats(model).out_bytes, 0
        assert_same(byte_step(model), byte_step(twin))
        moved.append(memsys.stats(model).out_bytes - before + kept[0])
    assert kept[0] > 2300 << 10
    assert moved[1] == moved[2] == moved[0]


def test_what_is_wanted_now_takes_the_room_of_what_came_ahead_of_its_time(tmp_path):
    x = torch.randn(128, 128, requires_grad=True)
    with memsys.offload_activations(policy="all", min_bytes=1, spill_dir=tmp_path, device_budget="1MiB") as context:
        loss = x.sin().exp().square().sigmoid().sum()  # each saves 64 KiB
    context.drain()
    session = context.session
    first, second, wanted = (span() for span in session._last_record()._spans[:3])
    mover, budget = session._mover, session._store.device_budget
    assert mover.prefetch(first) and mover.prefetch(second)
    filler = budget.left_bytes
    assert budget.try_reserve(filler)
    mover.fetch(wanted)
    assert first.landing is None and second.landing is None
    budget.release(filler)
    del first, second, wanted
    loss.backward()
    gradient, x.grad = x.grad, None
    x.sin().exp().square().sigmoid().sum().backward()
    assert torch.equal(gradient, x.grad)


@pytest.mark.parametrize(
    "options",
    [{"return_memory": True}, {"verify": True}, {"device_budget": "2MiB"}, {"exclude": ("blocks.1*",)}],
    ids=str,
)
def test_a_gpt_with_options(options, tmp_path):
    stats = compare(lambda model: [*byte_step(model), *byte_step(model)], tmp_path, "all", gpt(), **options)
    assert stats.packed_count > 0
    if "device_budget" in options:
        assert stats.peak_device_bytes <= 2 << 20


@pytest.mark.parametrize("policy", ["all", "auto"])
def test_training_stays_on_the_same_path(policy, tmp_path):
    def train(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        results = []
        for _ in range(4):
            results += byte_step(model)
            optimizer.step()
        return [*results, *(parameter.detach() for parameter in model.parameters())]

    assert compare(train, tmp_path, policy, gpt()).packed_count > 0


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.lstm = nn.LSTM(32, 32, num_layers=2, batch_first=True)

    def forward(self, tokens):
        return self.lstm(self.embedding(tokens))[0]


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Dropout(0.5),
    )  # fmt: skip


def seeded(*inputs):
    def scenario(model):
        torch.manual_seed(3)
        return step(model, *inputs)

    return scenario


@pytest.mark.parametrize("policy", TIERS)
@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (convolutions, (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)),
        (Recurrent, (torch.arange(60).view(2, 30) % 50,)),
        (lambda: nn.EmbeddingBag(50, 32, mode="max"), (torch.arange(64 * 256).view(64, 256) % 50,)),
        (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (torch.ones(2, 20, 32),)),
    ],
    ids=["convolutions", "lstm", "embedding bag", "encoder layer"],
)
def test_layers(build, inputs, policy, tmp_path):
    torch.manual_seed(0)
    assert compare(seeded(*inputs), tmp_path, TIERS[policy], build()).packed_count > 0


def test_autocast_leaves_its_cached_weights(tmp_path):
    def scenario(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(small_input()).square().mean() + model(small_input(2)).square().mean()
        loss.backward()
        return [loss, *gradients(model)]

    assert compare(scenario, tmp_path).packed_count > 0
    moved = []
    model = offloaded(small_model(), tmp_path, lambda saved: moved.append(saved.producer) or memsys.FILE)
    scenario(model)
    assert "GeluBackward0" in moved
    assert "TBackward0" not in moved  # a linear layer saves its weight transposed


def test_gradient_accumulation(tmp_path):
    def scenario(model):
        for seed in range(3):
            (model(small_input(seed)).square().mean() / 3).backward()
        return gradients(model)

    assert compare(scenario, tmp_path).packed_count > 0


class Keyworded(nn.Module):
    """A layer that is checkpointed and takes its inputs by keyword, one of them no tensor."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.layers = small_model()
        self.use_reentrant = use_reentrant

    def run(self, x, layer=None, *, scale=None):
        return layer(x) * scale

    def forward(self, x):
        for layer in self.layers:
            if self.use_reentrant:
                x = checkpoint(
                    lambda x, scale, layer=layer: self.run(x, layer, scale=scale),
                    x,
                    x.detach().cos(),
                    use_reentrant=True,
                )
            else:
                x = checkpoint(self.run, x, layer=layer, scale=x.detach().cos(), use_reentrant=False)
        return x


@pytest.mark.parametrize("policy", TIERS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers(use_reentrant, policy, tmp_path):
    stats = compare(
        lambda model: step(model, small_input(requires_grad=True)), tmp_path, TIERS[policy], Keyworded(use_reentrant)
    )
    # Reentrant checkpoints save their inputs through the hooks; the others keep them out of autograd's sight.
    assert stats.packed_count > 0 or not use_reentrant


@pytest.fixture
def process_group(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("outermost", ["wrapper", "model"])
def test_distributed_data_parallel(outermost, process_group, tmp_path):
    wrap = nn.parallel.DistributedDataParallel
    plain = wrap(small_model())
    model = (
        offloaded(wrap(small_model()), tmp_path) if outermost == "wrapper" else wrap(offloaded(small_model(), tmp_path))
    )
    for seed in range(3):
        assert_same(step(model, small_input(seed)), step(plain, small_input(seed)))
    assert memsys.stats(model).packed_count > 0
    assert_idle(model)


def test_retained_graphs_learn_no_wrong_order(tmp_path):
    def scenario(model):
        results = []
        for seed in range(3):
            loss = model(small_input(seed)).square().mean()
            loss.backward(retain_graph=True)
            loss.backward()
            results += [loss, *gradients(model)]
        return results

    assert compare(scenario, tmp_path).packed_count > 0


def test_two_shapes_in_turn(tmp_path):
    def scenario(model):
        return [tensor for rows in (64, 48, 64, 48) for tensor in step(model, small_input()[:rows])]

    assert compare(scenario, tmp_path, "auto", copy.deepcopy(small_model())).packed_count > 0


def test_functional_loss_in_the_scope(tmp_path):
    wanted_model, model = small_model(), small_model()
    F.cross_entropy(wanted_model(small_input()), torch.arange(64)).backward()
    with memsys.offload_activations(policy="all", min_bytes=1, spill_dir=tmp_path) as session:
        loss = F.cross_entropy(model(small_input()), torch.arange(64))
    loss.backward()
    assert_same(gradients(model), gradients(wanted_model))
    assert session.stats().packed_count > 0
