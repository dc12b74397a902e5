"""Who answers for a saved tensor: claimants in order, somebody else's hooks where they are asked to, nobody twice."""

import torch
from torch.utils.checkpoint import checkpoint

from memsys import _tensor
from memsys.activations.dispatcher import Dispatcher, active_claimants, innermost_claimants


class Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()

    def unpack(self) -> torch.Tensor:
        return self.tensor


class Claim:
    """Claims every tensor of one shape, and counts them."""

    def __init__(self, shape: tuple[int, ...], stage: int = 0, in_backward: bool = True) -> None:
        self.shape, self.stage, self.in_backward, self.count = shape, stage, in_backward, 0

    def claim(self, tensor: torch.Tensor) -> Held | None:
        if tuple(tensor.shape) != self.shape:
            return None
        self.count += 1
        return Held(tensor)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ weight)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_foreign_hooks_get_what_nobody_claims() -> None:
    packed, claim = [], Claim((3, 3))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tuple(tensor.shape))
        return tensor * 2  # seen in the gradient

    x, weight = leaf(2, 3), leaf(3, 3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Dispatcher([claim], passes_on=True):
        assert innermost_claimants() == (claim,)
        (x @ weight).sum().backward()
    assert claim.count == 1
    assert packed == [(2, 3)]
    assert torch.equal(weight.grad, 2 * x.detach().t() @ torch.ones(2, 3))
    assert torch.equal(x.grad, torch.ones(2, 3) @ weight.detach().t())


def test_foreign_hooks_get_nothing_where_they_are_not_asked() -> None:
    packed, x = [], leaf(2, 3)
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda _: x), Dispatcher([Claim((9,))]):
        x.tanh().sum().backward()
    assert packed == []


def test_foreign_hooks_hide_the_dispatcher_around_them() -> None:
    outer, inner = Claim((2, 3), stage=3), Claim((3, 3))
    with Dispatcher([outer]):
        assert innermost_claimants() == active_claimants() == (outer,)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            assert innermost_claimants() == ()
            with Dispatcher([inner], passes_on=True) as opened:
                assert opened.claimants == (inner,)
        with Dispatcher([inner], passes_on=True) as opened:
            assert opened.claimants == (inner, outer)


def test_a_checkpoint_still_drops_what_nobody_claims_and_finds_it_again() -> None:
    x, weight = leaf(2, 3), leaf(3, 3)
    wanted = torch.autograd.grad(product(x, weight).sum(), (x, weight))
    claim, runs = Claim((3, 3)), []

    def run(value: torch.Tensor) -> torch.Tensor:
        runs.append(_tensor.in_backward())
        with Dispatcher([claim], passes_on=True):
            return product(value, weight)

    found = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).sum(), (x, weight))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert runs == [False, True]
    assert claim.count == 2  # in the forward and when it is computed again


def test_claims_rest_while_backward_runs_unless_they_say_otherwise() -> None:
    resting, working = Claim((2, 2), stage=0, in_backward=False), Claim((2, 2), stage=1)
    with Dispatcher([resting, working]):

        class Inside(torch.autograd.Function):
            @staticmethod
            def forward(context: object, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
                with torch.enable_grad():
                    gradient.detach().requires_grad_().tanh()
                return gradient

        Inside.apply(leaf(2, 2)).sum().backward()
    assert resting.count == 0
    assert working.count == 1
