"""What people do to a model beside training it: copies, averages, pickles, compilation, wrappers, patches.

Offloading patches one instance's forward, so each of these must see the class, the state and the weights it would
see without; what can't work says so and names the remedy.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
import types
import warnings

import pytest
import torch
from built import needs_memsys
from torch import nn
from torch.optim.swa_utils import AveragedModel

needs_memsys()

from gradients import assert_idle, assert_same, offloaded, small_input, small_model, step  # noqa: E402

import memsys  # noqa: E402
from memsys.activations.offload import session_of  # noqa: E402


@pytest.fixture
def model(tmp_path):
    return offloaded(small_model(), tmp_path)


def shifted(model: nn.Module) -> nn.Module:
    """The model with other weights than its twins have."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    return model


def test_the_same_module_comes_back_and_looks_the_same():
    model, plain = small_model(), small_model()
    assert memsys.offload(model) is model
    assert type(model) is type(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert model.forward.__name__ == "forward" and model.forward.__doc__ == plain.forward.__doc__
    memsys.restore(model)
    assert "forward" not in vars(model)


def test_a_deep_copy_uses_its_own_weights(model):
    wanted = step(shifted(small_model()), small_input())
    twin = shifted(copy.deepcopy(model))
    assert_same(step(twin, small_input()), wanted)
    assert_same(step(model, small_input()), step(small_model(), small_input()))
    assert_idle(model)


def test_an_average_uses_its_own_weights(model):
    def averaged(source):
        average = AveragedModel(source, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        average.update_parameters(source)
        average.update_parameters(shifted(source))
        with torch.no_grad():
            return [average(small_input()), *average.module.state_dict().values()]

    found = averaged(model)
    assert_same(found, averaged(small_model()))
    assert not torch.equal(found[0], model(small_input()))


def saved(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "through",
    [
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.load(io.BytesIO(saved(model)), weights_only=False),
    ],
    ids=["pickle", "torch.save"],
)
def test_what_is_saved_loads_as_a_plain_model(through, model):
    wanted = step(small_model(), small_input())
    step(model, small_input())
    loaded = through(model)
    assert type(loaded) is type(model)
    assert session_of(loaded) is None
    assert_same(step(loaded, small_input()), wanted)
    with pytest.raises(memsys.MemsysError, match="not offloaded"):
        memsys.stats(loaded)


def test_a_state_dict_goes_both_ways(model):
    other = shifted(small_model())
    model.load_state_dict(other.state_dict())
    assert_same(step(model, small_input()), step(other, small_input()))
    other.load_state_dict(model.state_dict())


def test_offload_again_replaces_the_first(model, tmp_path):
    step(model, small_input())
    assert memsys.stats(model).packed_count > 0
    again = memsys.offload(model, spill_dir=tmp_path, min_bytes=1 << 40)
    step(again, small_input())
    assert memsys.stats(again).packed_count == 0
    memsys.restore(model)
    assert "forward" not in vars(model)


def test_accelerate_prepares_and_unwraps(model):
    accelerate = pytest.importorskip("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's own, on machines without a GPU
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        prepared = accelerator.prepare(model)
    wanted_model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = wanted_model(small_input()).float().square().mean()
    wanted.backward()
    loss = prepared(small_input()).float().square().mean()
    accelerator.backward(loss)
    assert_same(
        [loss, *(p.grad for p in prepared.parameters())], [wanted, *(p.grad for p in wanted_model.parameters())]
    )
    assert memsys.stats(prepared).packed_count > 0
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert plain is model
    assert_same(step(plain, small_input()), step(small_model(), small_input()))


class Counter:
    """Somebody else's patch of forward, as profilers and adapters do it."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self.model = model

    def patch(self) -> None:
        before = self.model.forward
        self.had = vars(self.model).get("forward")

        def forward(module, *args, **kwargs):
            self.count += 1
            return before(*args, **kwargs)

        forward.__wrapped__ = before
        self.model.forward = types.MethodType(forward, self.model)

    def undo(self) -> None:
        if self.had is None:
            del self.model.forward
        else:
            self.model.forward = self.had


ORDERS = [
    order
    for order in itertools.permutations(["offload", "patch", "restore", "undo"])
    if order.index("offload") < order.index("restore") and order.index("patch") < order.index("undo")
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_restore_in_any_order_of_patching(order, tmp_path):
    wanted = step(small_model(), small_input())
    model = small_model()
    counter = Counter(model)
    actions = {
        "offload": lambda: offloaded(model, tmp_path),
        "restore": lambda: memsys.restore(model),
        "patch": counter.patch,
        "undo": counter.undo,
    }
    is_offloaded = is_patched = False
    for action in order:
        actions[action]()
        is_offloaded = {"offload": True, "restore": False}.get(action, is_offloaded)
        is_patched = {"patch": True, "undo": False}.get(action, is_patched)
        if order.index("offload") < order.index("patch") or action != "undo":
            assert (session_of(model) is not None) == is_offloaded, action
        count = counter.count
        assert_same(step(model, small_input()), wanted)
        assert counter.count - count == is_patched, action


# The compiler looks at the gradient of every input, and torch warns of that where the input is a layer's result.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_layers_compiled_one_by_one_then_offloaded(backend, tmp_path):
    torch.compiler.reset()

    def compiled():
        model = small_model()
        for layer in model:
            layer.compile(backend=backend)
        return model

    plain, model = compiled(), offloaded(compiled(), tmp_path)
    for _ in range(2):
        assert_same(step(model, small_input()), step(plain, small_input()))
    assert memsys.stats(model).packed_count > 0
    assert_idle(model)


REMEDY = r"memsys\.restore\(model\)"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_whole_model_compiled_breaks_its_graph_at_the_offload(model):
    torch.compiler.reset()
    plain = torch.compile(small_model(), backend="eager")
    assert_same(step(torch.compile(model, backend="eager"), small_input()), step(plain, small_input()))
    assert memsys.stats(model).packed_count > 0


def test_a_whole_model_compiled_in_one_graph_is_refused(model):
    torch.compiler.reset()
    with pytest.raises(Exception, match=REMEDY):
        torch.compile(model, fullgraph=True, backend="eager")(small_input())


def test_strict_export_is_refused(model):
    torch.compiler.reset()
    with pytest.raises(Exception, match=REMEDY):
        torch.export.export(model, (small_input(),), strict=True)


def test_functional_transforms_are_refused(model):
    weights = dict(model.named_parameters())

    def loss(weights):
        return torch.func.functional_call(model, weights, (small_input(),)).square().mean()

    with pytest.raises(memsys.UnsupportedError, match=REMEDY):
        torch.func.grad(loss)(weights)
    memsys.restore(model)
    assert set(torch.func.grad(loss)(weights)) == set(weights)
