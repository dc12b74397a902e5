"""The predictor learns which neurons a small network wakes, its report counts what it missed, and the network that
believes it is right but for those."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

from bundled import Net, bundle_place  # noqa: E402

import memsys  # noqa: E402
from memsys.weights.predictor import (  # noqa: E402
    LowRankPredictor,
    PredictedFFN,
    measure,
    record_activity,
    train_predictor,
)

D, N = 24, 96


def make_net(gated=False, rank=4):
    """A network whose predicting projection is of low rank, so that a predictor can learn it."""
    torch.manual_seed(0)
    net = Net(D, N, gated=gated).eval()
    chosen = net.gate if gated else net.up
    chosen.weight.copy_(torch.randn(N, rank) @ torch.randn(rank, D) / rank)
    return net


def activity(net, count, seed):
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(seed))
    return record_activity(net.up if net.gate is None else net.gate, lambda: net(x))


def biases_of(net):
    return {part: getattr(net, part).bias for part in net.parts()}


def test_activity_is_recorded():
    net = make_net()
    x = torch.randn(2, 3, D)
    seen, active = record_activity(net.up, lambda: (net(x), net(2 * x)))
    assert torch.equal(seen, torch.cat([x, 2 * x]).reshape(-1, D))
    assert torch.equal(active, net.up(seen) > 0)
    net(x)
    assert len(seen) == 12  # the hook is gone
    with pytest.raises(memsys.InputError, match="did not"):
        record_activity(net.down, lambda: None)


def test_it_learns_and_the_report_says_how_well():
    net = make_net()
    torch.manual_seed(1)
    predictor = LowRankPredictor(D, N, rank=8)
    held_out = [activity(net, 400, seed=100)]
    before = measure(predictor, held_out)
    losses = train_predictor(predictor, [activity(net, 64, seed) for seed in range(30)], epochs=5, learning_rate=2e-2)
    after = measure(predictor, held_out)
    assert losses[-1] < 0.3 * losses[0]
    assert after.recall > 0.95 > before.recall
    assert after.false_positive_rate < 0.1
    assert "recall" in str(after) and after.token_count == 400


def test_rare_neurons_weigh_as_much_as_silent_ones():
    """From inputs that tell nothing, a balanced loss learns to be undecided; a plain one would never predict any."""
    torch.manual_seed(0)
    predictor = LowRankPredictor(D, N, rank=2)
    batch = (torch.zeros(N, D), torch.eye(N, dtype=torch.bool))
    train_predictor(predictor, [batch] * 50, epochs=4, learning_rate=1e-2)
    assert (torch.sigmoid(predictor.scores(batch[0])) - 0.5).abs().max() < 0.05


def test_the_report_counts():
    active = torch.tensor([[True, True, False, False], [True, False, False, False]])
    predicted = torch.tensor([[True, False, True, False], [True, False, False, False]])
    report = measure(lambda x: predicted, [(torch.zeros(2, 3), active)])
    assert report.recall == 2 / 3 and report.false_negative_rate == pytest.approx(1 / 3)
    assert report.false_positive_rate == 1 / 5
    assert (report.active_share, report.predicted_share, report.token_count) == (3 / 8, 3 / 8, 2)
    with pytest.raises(memsys.InputError, match="found none"):
        measure(lambda x: predicted, [])


@pytest.mark.parametrize("capacity", [N, 11])
@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
def test_with_a_perfect_predictor_the_network_is_the_dense_one(gated, capacity, tmp_path):
    net = make_net(gated)
    chosen = net.gate if gated else net.up
    place = bundle_place(net, tmp_path / "b.safetensors")
    ffn = PredictedFFN(place, _Oracle(chosen), biases=biases_of(net), capacity_rows=capacity, window_tokens=2)
    for seed in range(10):
        x = torch.randn(1, 3, D, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ffn(x), net(x), rtol=1e-5, atol=1e-6)
    ffn.rows.core.check_invariants()
    assert ffn.stats()["read_bytes"] > 0


def test_a_missed_neuron_is_silent(tmp_path):
    net = make_net()
    place = bundle_place(net, tmp_path / "b.safetensors")
    ffn = PredictedFFN(place, _Oracle(net.up, missed=range(0, N, 3)), biases=biases_of(net), capacity_rows=N,
                       window_tokens=1)  # fmt: skip
    x = torch.randn(1, D)
    h = torch.relu(net.up(x))
    h[:, ::3] = 0
    torch.testing.assert_close(ffn(x), net.down(h), rtol=1e-5, atol=1e-6)


def test_what_makes_no_sense_is_said(tmp_path):
    net = make_net()
    place = bundle_place(net, tmp_path / "b.safetensors")
    for bad in ({"rank": 0}, {"rank": 4, "threshold": 1.0}):
        with pytest.raises(memsys.InputError, match="threshold"):
            LowRankPredictor(D, N, **bad)
    with pytest.raises(memsys.InputError, match="epoch"):
        train_predictor(LowRankPredictor(D, N, 4), [])
    with pytest.raises(memsys.InputError, match="gate"):
        PredictedFFN(place, _Oracle(net.up), biases={"gate": net.up.bias}, capacity_rows=4)
    ffn = PredictedFFN(place, _Oracle(net.up), capacity_rows=4)
    with pytest.raises(memsys.UnsupportedError, match="no_grad"):
        ffn(torch.randn(1, D, requires_grad=True))


class _Oracle(torch.nn.Module):
    """Predicts what is active, but for some neurons."""

    def __init__(self, projection, missed=()):
        super().__init__()
        self._projection, self._missed = (projection,), list(missed)

    def forward(self, x):
        mask = self._projection[0](x) > 0
        mask[..., self._missed] = False
        return mask
