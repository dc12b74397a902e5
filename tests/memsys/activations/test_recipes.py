"""What a cheap operation gives again is dropped only where that was proven, and never differs by a bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from built import needs_memsys
from torch import nn

needs_memsys()

from gradients import (  # noqa: E402
    DROPPED,
    assert_idle,
    assert_same,
    gradients,
    offloaded,
    small_input,
    small_model,
    step,
)

import memsys  # noqa: E402
from memsys import _C, _tensor, runtimes  # noqa: E402
from memsys.activations import mover, policy, recipes, session  # noqa: E402
from memsys.activations.span import PassedHandle  # noqa: E402


class Around(nn.Module):
    """An operation between two projections, whose second saves its result."""

    def __init__(self, operation, width=192) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, width)
        self.operation = operation
        self.down = nn.Linear(width, 64)

    def forward(self, x):
        return self.down(self.operation(self.up(x)))


class RootMeanSquare(nn.Module):
    """Llama's norm: products all the way, the last with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def gated(x):
    gate, up = x[:, :96], x[:, 96:]
    return (F.silu(gate) * up).repeat(1, 2)


OPERATIONS = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "product": lambda x: x * torch.sigmoid(x),
    "square": lambda x: x * x,
    "broadcast product": lambda x: x * x.mean(-1, keepdim=True),
    "transposed": lambda x: F.gelu(x.t()).t(),
    "view": lambda x: F.gelu(x).view(-1, 4, 192).flatten(0, 1),
    "layer norm": nn.LayerNorm(192),
    "layer norm, other epsilon": nn.LayerNorm(192, eps=1e-2),
    "layer norm without bias": nn.LayerNorm(192, bias=False),
    "product with a parameter": RootMeanSquare(),
    "chain": lambda x: F.silu(F.gelu(x)) * F.silu(x),
}


def steps(model, count=3):
    """Results of several steps, and the bytes that each made again."""
    results, made = [], []
    for _ in range(count):
        before = memsys.stats(model).remade_bytes
        results += step(model, small_input().to(next(model.parameters()).dtype))
        made.append(memsys.stats(model).remade_bytes - before)
    return results, made


def plain_steps(model, count=3):
    return [result for _ in range(count) for result in step(model, small_input().to(next(model.parameters()).dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_is_moved_once_and_then_made_again(name, dtype, tmp_path):
    plain = Around(OPERATIONS[name]).to(dtype)
    model = offloaded(copy.deepcopy(plain), tmp_path, DROPPED)
    results, made = steps(model)
    assert_same(results, plain_steps(plain))
    assert made[0] == 0 and made[1] == made[2] > 0
    assert_idle(model)


@pytest.mark.parametrize(
    "operation",
    [
        nn.LayerNorm(192, elementwise_affine=False),  # its epsilon is nowhere to be read
        nn.Dropout(0.5),
        lambda x: x * 2.0,
        lambda x: F.gelu(x)[:, :192].clone(),
        torch.sigmoid,
        gated,
    ],
)
def test_what_is_not_one_known_operation_moves(operation, tmp_path):
    plain = Around(operation)
    model = offloaded(copy.deepcopy(plain), tmp_path, DROPPED)
    for seed in range(3):
        torch.manual_seed(seed)
        found = step(model, small_input())
        torch.manual_seed(seed)
        assert_same(found, step(plain, small_input()))
    assert memsys.stats(model).out_bytes > 0


def test_verify_compares_each_time_and_drops_nothing(tmp_path):
    model = offloaded(small_model(), tmp_path, DROPPED, verify=True)
    results, made = steps(model)
    assert_same(results, plain_steps(small_model()))
    assert made == [0, 0, 0]


def quantised(x):
    y = F.gelu(x)
    y.data = y.data.round(decimals=1)  # straight-through: autograd knows nothing of it
    return y


def counted(x):
    y = F.gelu(x)
    with torch.no_grad():
        y.mul_(0.5)  # autograd counts it
    return y


def swapped(x):
    y = F.gelu(x)
    view = y.view(-1, 192)
    y.data = torch.zeros(8, 8)
    return view


@pytest.mark.parametrize("operation", [quantised, counted, swapped])
def test_a_result_changed_after_its_operation_is_never_dropped(operation, tmp_path):
    model = offloaded(Around(operation), tmp_path, DROPPED)
    results, made = steps(model)
    assert_same(results, plain_steps(Around(operation)))
    assert made == [0, 0, 0]


def test_a_change_that_begins_later_is_told(tmp_path):
    is_quantised = False
    model = Around(lambda x: quantised(x) if is_quantised else F.gelu(x))
    offloaded(model, tmp_path, DROPPED)
    step(model, small_input())
    is_quantised = True
    with pytest.raises(memsys.CorruptionError, match="policy='all'"):
        step(model, small_input())
    is_quantised = False
    assert_same(step(model, small_input()), step(Around(F.gelu), small_input()))
    assert_idle(model)


def test_a_counted_change_that_begins_later_moves(tmp_path):
    operations = [F.gelu]

    def operation(x):
        return operations[-1](x)

    model, twin = offloaded(Around(operation), tmp_path, DROPPED), Around(operation)
    for chosen in (F.gelu, counted, F.gelu):
        operations.append(chosen)
        before = memsys.stats(model).remade_bytes
        assert_same(step(model, small_input()), step(twin, small_input()))
    assert memsys.stats(model).remade_bytes > before  # the proof stands: the changed result was never tried


def test_a_parameter_emptied_since_is_told(tmp_path):
    model = offloaded(Around(nn.LayerNorm(192)), tmp_path, DROPPED)
    step(model, small_input())
    loss = model(small_input()).sum()
    model.operation.weight.untyped_storage().resize_(0)  # as sharding does
    with pytest.raises(memsys.CorruptionError, match="emptied"):
        loss.backward()


def test_a_recipe_once_unequal_stays_so(tmp_path):
    """Positions are all that tells results of different steps apart, so one refusal counts for good."""
    is_quantised = True
    model = Around(lambda x: quantised(x) if is_quantised else F.gelu(x))
    offloaded(model, tmp_path, DROPPED)
    step(model, small_input())
    is_quantised = False
    _, made = steps(model)
    assert made == [0, 0, 0]


def test_another_sequence_length_needs_no_proof_of_its_own(tmp_path):
    plain = small_model()
    model = offloaded(copy.deepcopy(plain), tmp_path, DROPPED)
    for rows in (64, 96, 80):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        before = memsys.stats(model).remade_bytes
        assert_same(step(model, x), step(plain, x))
        assert (memsys.stats(model).remade_bytes > before) == (rows != 64)


def test_autocast_is_over_when_backward_runs(tmp_path):
    def run(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(small_input()).float().square().mean()
        model.zero_grad()
        loss.backward()
        return [loss.detach(), *gradients(model)]

    plain = small_model()
    model = offloaded(copy.deepcopy(plain), tmp_path, DROPPED)
    for _ in range(3):
        assert_same(run(model), run(plain))
    assert memsys.stats(model).remade_bytes > 0


def test_auto_drops_within_a_budget_that_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "_may_plan", lambda _: False)  # as where no plan fits
    monkeypatch.setattr(policy, "MIN_REMADE_BYTES", 0)
    monkeypatch.setattr(mover, "DEFAULT_WINDOW_BYTES", 64 << 10)
    plain = small_model()
    model = offloaded(copy.deepcopy(plain), tmp_path, "auto", device_budget="400KiB")
    results, made = steps(model)
    assert_same(results, plain_steps(plain))
    assert made[1] > 0
    assert memsys.stats(model).peak_device_bytes <= 400 << 10
    assert_idle(model)


def test_auto_moves_what_is_too_small_to_make_again(tmp_path):
    model = offloaded(small_model(), tmp_path, "auto")
    assert steps(model)[1] == [0, 0, 0]


def test_a_parametrised_weight_is_not_computed_once_more(tmp_path):
    """Spectral norm changes its buffers whenever the weight is read in training."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)), nn.GELU(), nn.Linear(64, 64))
    model = offloaded(copy.deepcopy(plain), tmp_path, "auto")
    assert_same(steps(model)[0], plain_steps(plain))


class Branching(nn.Module):
    """Each activation is read by its layer and by a branch that no loss may ever reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.branch = nn.Linear(64, 64)

    def forward(self, x):
        aside = []
        for layer in self.layers:
            y = F.gelu(layer(x))
            aside.append(self.branch(y))
            x = x + y
        return x, aside


def test_inputs_do_not_wait_for_a_branch_that_is_never_read(tmp_path):
    model = offloaded(Branching(), tmp_path, DROPPED, device_budget="3MiB")
    x = torch.randn(2048, 64, requires_grad=True)
    for _ in range(3):
        out, aside = model(x)
        out.sum().backward()
        assert len(aside) == 6
    del out, aside
    assert_idle(model)


class Repeated(nn.Module):
    """A long chain of products."""

    def __init__(self, count=300) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.full((64,), 1.001))

    def forward(self, x):
        for _ in range(self.count):
            x = x * self.weight
        return x


def test_a_long_chain_is_broken_by_tensors_that_move(tmp_path, caplog):
    caplog.set_level("DEBUG", "memsys")
    model = offloaded(Repeated(), tmp_path, DROPPED)
    results, made = steps(model)
    assert_same(results, plain_steps(Repeated()))
    assert made[1] > 0
    assert "could not try" not in caplog.text  # for the depth of the recursion


@pytest.mark.parametrize("operation", [F.mish, F.gelu, F.silu], ids=["mish", "gelu", "silu"])
def test_backward_on_fewer_threads_gives_the_same_bits(operation, tmp_path):
    """The tails of what each thread takes are computed by other instructions."""

    def run(model):
        results = []
        for _ in range(2):
            model.zero_grad()
            torch.set_num_threads(2)
            loss = model(torch.randn(333, 64, generator=torch.Generator().manual_seed(3))).sum()
            torch.set_num_threads(1)
            loss.backward()
            results += gradients(model)
        return results

    count = torch.get_num_threads()
    try:
        plain = Around(operation, width=1001)
        model = offloaded(copy.deepcopy(plain), tmp_path, DROPPED)
        assert_same(run(model), run(plain))
        assert memsys.stats(model).remade_bytes > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(count)


@pytest.mark.parametrize("seed", range(3))
def test_on_an_accelerator_whose_edges_are_checked(seed):
    runtime = _C.Runtime(_C.DeviceKind.simulated, seed=seed, io=_C.IoEngineChoice.threads)
    runtimes.override_runtime(runtime, _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write)))
    try:
        model = memsys.offload(small_model(), policy=DROPPED, min_bytes=1)
        results, made = steps(model)
        assert_same(results, plain_steps(small_model()))
        assert made[1] > 0
        memsys.restore(model)
        runtime.drain()
    finally:
        runtimes.override_runtime(None)


def test_what_one_stream_made_is_not_read_on_another():
    runtime = _C.Runtime(_C.DeviceKind.simulated, seed=0, io=_C.IoEngineChoice.threads)
    backend = _tensor.SimulatedBackend(runtime, (_C.Use.read, _C.Use.write))
    runtimes.override_runtime(runtime, backend)
    try:
        model = memsys.offload(Around(F.gelu), policy=DROPPED, min_bytes=1)
        step(model, small_input())
        loss = model(small_input()).sum()
        dropped = loss.grad_fn.next_functions[0][0]._raw_saved_mat1.data
        streams = [backend.stream, runtime.create_stream("second")]
        found = []
        for backend.stream in streams:
            found.append(dropped.peek())
        assert memsys.stats(model).remade_bytes == 2 * found[0].nbytes
        assert torch.equal(*found)
        memsys.restore(model)
    finally:
        runtimes.override_runtime(None)


@pytest.mark.parametrize(
    ("requires_grad", "device_type", "is_distributed", "lasts"),
    [
        (True, "cpu", False, True),
        (False, "cpu", False, True),
        (True, "cpu", True, False),
        (True, "cuda", False, True),
        (False, "cuda", False, False),
    ],
)
def test_of_what_was_passed_only_what_stays_is_read_again(
    requires_grad, device_type, is_distributed, lasts, monkeypatch
):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: is_distributed)
    handle = PassedHandle(torch.zeros(4, requires_grad=requires_grad))
    assert recipes._will_last(handle, device_type) is lasts
