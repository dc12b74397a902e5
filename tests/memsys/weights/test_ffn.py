"""WindowedFFN: the dense network's bits in the zero-filled layout, its values in the compacted one, under every policy;
reads, moves and bytes as counted; and typed errors after which the next call is right."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from built import needs_memsys
from torch import nn

needs_memsys()

from bundled import Net, bundle_place  # noqa: E402

import memsys  # noqa: E402
from memsys import _C  # noqa: E402
from memsys.runtimes import override_runtime  # noqa: E402
from memsys.weights.ffn import WindowedFFN  # noqa: E402
from memsys.weights.ffn_rows import RowPool  # noqa: E402

# (d, n): parts on pages, parts that share one, parts of several pages, and odd sizes.
SIZES = [(1024, 96), (48, 160), (2048, 64), (250, 33)]
POLICIES = {
    "window": {"policy": "window", "window_tokens": 3},
    "hot": {"policy": "hot", "hot": range(0, 33, 2)},
    "window+hot": {"policy": "window+hot", "window_tokens": 2, "hot": range(10)},
    "lru": {"policy": "lru"},
}


def make_net(size=(48, 160), seed=0, **options):
    torch.manual_seed(seed)
    return Net(*size, **options).eval()


def windowed(net, place, **options):
    """The streamed twin of a network; it holds a copy of the resident projection, and no other weight."""
    options = {"capacity_rows": place.rows} | options
    up, gate, down = net.up, net.gate, net.down
    if gate is None:
        return WindowedFFN(place, up=copy.deepcopy(up), down_bias=down.bias, **options)
    return WindowedFFN(place, gate=copy.deepcopy(gate), up_bias=up.bias, down_bias=down.bias, **options)


def walk(net, count=12, tokens=1, seed=1):
    """Inputs that drift, so that neighbouring ones wake some of the same neurons."""
    generator = torch.Generator().manual_seed(seed)
    d, dtype = net.up.in_features, net.up.weight.dtype
    x = torch.randn(1, tokens, d, generator=generator)
    for _ in range(count):
        x = 0.8 * x + 0.6 * torch.randn(1, tokens, d, generator=generator)
        yield x.to(dtype)


def staging_bytes():
    pool = RowPool()
    return pool.budget.used_bytes


def tolerance(dtype):
    return {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_layouts_against_the_dense_network(size, dtype, gated, tmp_path):
    net = make_net(size, gated=gated, dtype=dtype)
    place = bundle_place(net, tmp_path / "b.safetensors")
    exact, close = (windowed(net, place, layout=layout) for layout in ("zero_filled", "compacted"))
    with torch.no_grad():
        for shape in [(1, 1), (1,), (3, 5), (2, 1, 4), (40,)]:
            for seed in range(3):
                x = torch.randn(*shape, size[0], generator=torch.Generator().manual_seed(seed)).to(dtype)
                assert torch.equal(exact(x), net(x))
                torch.testing.assert_close(close(x), net(x), **tolerance(dtype))
    assert exact.stats()["arrival_count"] > 0


@pytest.mark.parametrize("bias", [False, True])
def test_without_biases(bias, tmp_path):
    net = make_net(gated=True, bias=bias)
    ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"))
    for x in walk(net):
        assert torch.equal(ffn(x), net(x))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
@pytest.mark.parametrize("layout", ["zero_filled", "compacted"])
def test_every_policy_gives_the_same(policy, gated, layout, tmp_path):
    net = make_net(gated=gated)
    place = bundle_place(net, tmp_path / "b.safetensors")
    ffn = windowed(net, place, layout=layout, capacity_rows=place.rows // 2, **POLICIES[policy])
    for x in walk(net, count=30):
        if layout == "zero_filled":
            assert torch.equal(ffn(x), net(x))
        else:
            torch.testing.assert_close(ffn(x), net(x), **tolerance(x.dtype))
        ffn.down.rows.core.check_invariants()
    stats = ffn.stats()
    assert stats["step_count"] == 30 and stats["wide_step_count"] == 0
    assert stats["move_count"] <= stats["drop_count"] <= stats["arrival_count"]
    assert stats["resident_bytes"] <= stats["capacity_bytes"] == place.rows // 2 * place.part_bytes * (1 + gated)


def test_a_step_reads_and_moves_only_what_changes(tmp_path):
    """An identity for `up`: the input says itself which neurons are active."""
    net = make_net((160, 160))
    with torch.no_grad():
        net.up.weight.copy_(torch.eye(160))
        net.up.bias.zero_()
    ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"), policy="window", window_tokens=2)

    def step(*active):
        x = torch.zeros(1, 160)
        x[0, list(active)] = 1.0
        before = ffn.stats()
        assert torch.equal(ffn(x), net(x))
        after = ffn.stats()
        return tuple(after[key] - before[key] for key in ("arrival_count", "drop_count", "move_count", "wanted_bytes"))

    row_bytes = 160 * 4
    assert step(*range(10)) == (10, 0, 0, 10 * row_bytes)
    assert step(*range(10)) == (0, 0, 0, 0)
    assert step(*range(5, 15)) == (5, 0, 0, 5 * row_bytes)
    assert step(*range(5, 15)) == (0, 5, 5, 0)  # rows 0 to 4 leave, and the last five move in
    assert step(3) == (1, 0, 0, row_bytes)
    assert step(3) == (0, 10, 1, 0)
    assert step() == (0, 0, 0, 0)
    assert ffn.stats()["set_operation_count"] <= 2 * (10 + 10 + 10 + 10 + 1 + 1)


def test_a_larger_window_reads_less(tmp_path):
    net = make_net()
    place = bundle_place(net, tmp_path / "b.safetensors")
    wanted = []
    for tokens in (1, 3, 8):
        ffn = windowed(net, place, window_tokens=tokens)
        for x in walk(net, count=40):
            ffn(x)
        wanted.append(ffn.stats()["wanted_bytes"])
    assert wanted[0] > wanted[1] > wanted[2] > 0


@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
@pytest.mark.parametrize("layout", ["zero_filled", "compacted"])
def test_more_active_rows_than_fit_are_brought_in_several_goes(layout, gated, tmp_path):
    net = make_net(gated=gated)
    place = bundle_place(net, tmp_path / "b.safetensors")
    ffn = windowed(net, place, layout=layout, capacity_rows=7)
    for x in walk(net, tokens=20):
        if layout == "zero_filled":
            assert torch.equal(ffn(x), net(x))
        else:
            torch.testing.assert_close(ffn(x), net(x), **tolerance(x.dtype))
    assert ffn.stats()["wide_step_count"] >= 12


def test_networks_of_one_pool_share_the_scratch(tmp_path):
    nets = [make_net(seed=seed, gated=True) for seed in range(3)]
    pool = RowPool()
    ffns = []
    for number, net in enumerate(nets):
        ffns.append(windowed(net, bundle_place(net, tmp_path / f"{number}.safetensors"), pool=pool))
    used = pool.budget.used_bytes
    for x, _ in itertools.product(walk(nets[0], count=4), range(2)):
        for net, ffn in zip(nets, ffns, strict=True):
            assert torch.equal(ffn(x), net(x))
    assert pool.budget.used_bytes == used
    dense_bytes = nets[0].up.weight.nbytes + nets[0].down.weight.nbytes
    matrix_bytes = -(-nets[0].up.out_features * 48 * 4 * 2 // 4096) * 4096
    assert used == staging_bytes() + dense_bytes + 3 * matrix_bytes


def test_the_scratch_is_zero_but_for_active_rows(tmp_path):
    """Else what one network left there would reach another: 0 times infinity is no number."""
    nets = [make_net(seed=seed) for seed in range(2)]
    nets[0].down.weight[:, ::2] = torch.inf
    pool = RowPool()
    ffns = []
    for number, net in enumerate(nets):
        ffns.append(windowed(net, bundle_place(net, tmp_path / f"{number}.safetensors"), pool=pool))
    for x in walk(nets[0]):
        assert not ffns[0](x).isfinite().all()
        assert torch.equal(ffns[1](x), nets[1](x))
        active = (nets[1].up(x) > 0).flatten()
        assert torch.equal(ffns[1].down._scratch.weight, nets[1].down.weight * active)


def test_whatever_is_not_zero_is_active(tmp_path):
    """`down` serves any input, though only one with many zeros is worth it."""
    net = make_net()
    ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"))
    h = -torch.rand(2, 160) * (torch.rand(2, 160) > 0.7)
    assert torch.equal(ffn.down(h), net.down(h))
    assert ffn.stats()["arrival_count"] == int((h != 0).any(0).sum())


def test_a_budget_is_held_and_said_to_be_too_small(tmp_path):
    net = make_net((1024, 96))
    place = bundle_place(net, tmp_path / "b.safetensors")
    staging = staging_bytes()
    budget = staging + net.down.weight.nbytes + 4096 + 20 * place.part_bytes
    ffn = windowed(net, place, device_budget=budget, capacity_rows=None)
    assert ffn.down.rows.core.capacity_rows == 20
    for x in walk(net, tokens=3):
        assert torch.equal(ffn(x), net(x))
    assert ffn.down.rows.pool.budget.peak_bytes <= budget
    with pytest.raises(memsys.BudgetError, match="compacted"):
        windowed(net, place, device_budget=staging + 5000, capacity_rows=None)
    with pytest.raises(memsys.BudgetError, match="give more"):
        windowed(net, place, device_budget=staging + 5000, capacity_rows=None, layout="compacted")
    with pytest.raises(memsys.BudgetError):
        windowed(net, place, device_budget=staging - 1, capacity_rows=None)


def test_inference_mode_and_ordinary_mode_mix(tmp_path):
    net = make_net(gated=True)
    ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"))
    for number, x in enumerate(walk(net)):
        with torch.inference_mode(number % 2 == 0):
            assert torch.equal(ffn(x), net(x))


def test_nan_is_not_silent(tmp_path):
    for gated in (False, True):
        net = make_net(gated=gated)
        ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"))
        x = torch.randn(1, 48)
        x[0, 3] = torch.nan
        assert ffn(x).isnan().all() and net(x).isnan().all()


@pytest.fixture
def faulty():
    """A runtime whose reads can be made to fail, for everything made in the test."""
    runtime = _C.Runtime(_C.DeviceKind.host, io=_C.IoEngineChoice.threads, faults=_C.FaultSeam.faulty)
    override_runtime(runtime)
    yield runtime
    override_runtime(None)


@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [("io_error", OSError), ("truncated", memsys.CorruptionError), ("corrupt", memsys.CorruptionError)],
)
def test_a_failed_read_is_typed_and_the_next_call_right(fault, error, gated, faulty, tmp_path):
    net = make_net(gated=gated)
    place = bundle_place(net, tmp_path / "b.safetensors", faulty, _C.Verify.always)
    ffn = windowed(net, place)
    first, second = walk(net, count=2)
    for at in range(50):
        assert torch.equal(ffn(first), net(first))
        faulty.arm_io(getattr(_C.IoFault, fault), at)
        message = ""
        try:
            assert torch.equal(ffn(second), net(second))
        except error as raised:
            message = f"{isinstance(raised, memsys.MemsysError)} {raised}"
        faulty.arm_io(_C.IoFault.none, 0)
        if not message:
            break
        assert message.startswith("True") and "b.safetensors" in message
        assert torch.equal(ffn(second), net(second))
        ffn.down.rows.core.clear()
    assert at > 0 and ffn.stats()["failure_count"] == at


def test_what_is_not_served_is_said(tmp_path):
    net = make_net(gated=True)
    place = bundle_place(net, tmp_path / "b.safetensors")
    ffn = windowed(net, place)
    with pytest.raises(memsys.UnsupportedError, match="no_grad"):
        ffn(torch.randn(1, 48, requires_grad=True))
    with torch.no_grad():
        ffn(torch.randn(1, 48, requires_grad=True))
    with pytest.raises(memsys.DtypeError, match="bfloat16"):
        ffn.down(torch.zeros(1, 160, dtype=torch.bfloat16))
    with pytest.raises(memsys.InputError, match="gate"):
        ffn.up(torch.randn(1, 48))
    with pytest.raises(memsys.InputError, match="without up"):
        ffn.down(torch.zeros(1, 160))
    with pytest.raises(memsys.UnsupportedError, match="state_dict"):
        ffn.state_dict()
    with pytest.raises(memsys.UnsupportedError, match="copied"):
        copy.deepcopy(ffn)
    assert ffn.down.weight.is_meta and ffn.down.weight.shape == net.down.weight.shape
    for bad in ({"layout": "dense"}, {"policy": "mru"}, {"policy": "hot"}, {"window_tokens": 0}, {"capacity_rows": 0}):
        with pytest.raises(memsys.InputError):
            windowed(net, place, **bad)
    with pytest.raises(memsys.InputError, match="both"):
        WindowedFFN(place, up=net.up, gate=net.gate)
    with pytest.raises(memsys.InputError, match="neither"):
        WindowedFFN(place)
    with pytest.raises(memsys.InputError, match="the packed one"):
        WindowedFFN(place, gate=nn.Linear(48, 161))


def test_a_network_that_its_gate_does_not_silence_is_refused(tmp_path):
    net = make_net(gated=True)
    ffn = windowed(net, bundle_place(net, tmp_path / "b.safetensors"))
    x = torch.randn(1, 48)
    gate = ffn.resident(x)
    ffn.up.note_gate(gate)
    with pytest.raises(memsys.CorruptionError, match="its gate was not"):
        ffn.down(torch.sigmoid(gate) * ffn.up(x))
