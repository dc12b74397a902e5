"""What coverage measures of a network whose active neurons are known, what it predicts, and what it advises."""

from __future__ import annotations

import json

import marian
import pytest
import torch
from torch import Tensor, nn

import memsys
from memsys.errors import InputError
from memsys.weights.cost import RatePoint, Rates, ReadRates
from memsys.weights.coverage import coverage

# Eight sentences of the kind that laws and contracts are made of, written for this test.
LEGAL_TEXT = """
The licensee shall keep accurate records of all copies made under this agreement and shall make them available to the \
licensor upon written request.
Nothing in this contract limits the liability of either party for death or personal injury caused by negligence.
The court held that the defendant had failed to give notice within the period required by law, and dismissed the \
appeal with costs.
Each member state shall ensure that the competent authorities have the powers necessary to monitor compliance with \
this regulation.
The tenant must return the keys on the last day of the lease and leave the premises in good condition.
Any dispute arising out of the interpretation of these terms shall be settled by arbitration in accordance with the \
rules of the chamber of commerce.
The directors declare that the annual accounts give a true and fair view of the assets and of the financial position \
of the company.
Personal data may be kept for no longer than is necessary for the purposes for which they are processed.
""".strip().splitlines()
# Seconds can be read off: 1 MB/s for rows of a page, 2 MB/s for whole layers.
RATES = Rates(ReadRates([RatePoint(4096, 1, 1e6), RatePoint(1 << 20, 1, 2e6)]), 1e9, 1e9, 1e9)


class Chosen(nn.Module):
    """Two FFNs in a row whose active neurons are the positive entries of the input, then those of its negative."""

    def __init__(self, neurons: int = 8) -> None:
        super().__init__()
        self.first, self.second = self._ffn(neurons, 1), self._ffn(neurons, -1)

    @staticmethod
    def _ffn(neurons: int, sign: int) -> nn.Sequential:
        ffn = nn.Sequential(nn.Linear(neurons, neurons, bias=False), nn.ReLU(), nn.Linear(neurons, 2, bias=False))
        with torch.no_grad():
            ffn[0].weight.copy_(sign * torch.eye(neurons))
        return ffn

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def signs(*rows: str) -> Tensor:
    """(1, tokens, neurons) of 1 where the text has "1", else -1."""
    return torch.tensor([[[1.0 if letter == "1" else -1.0 for letter in row] for row in rows]])


def test_known_activity() -> None:
    """The second FFN uses what the first does not."""
    batches = [signs("1.......", "11......", "..1....."), signs("1.......", "1.......")]
    report = coverage(Chosen(), batches, windows=(1, 2))
    first, second = report.ffns
    assert (first.up, first.gate, first.down, first.activation) == ("first.0", "", "first.2", "relu")
    assert (first.neurons, first.up_bytes, first.down_bytes, first.token_count) == (8, 32, 8, 5)
    assert first.active_share == pytest.approx((1 + 2 + 1 + 1 + 1) / 5 / 8)
    assert first.used_share == {1: first.active_share, 2: pytest.approx((2 + 3 + 1) / 3 / 8)}
    assert first.new_share == {1: pytest.approx((1 + 1 + 0) / 3 / 8), 2: pytest.approx(1 / 8)}
    assert (first.union_share, first.batch_tokens) == ((3 + 1) / 2 / 8, 2.5)
    assert second.active_share == pytest.approx(1 - first.active_share)
    assert second.union_share == pytest.approx((8 + 7) / 2 / 8)
    assert report.union_share == pytest.approx((first.union_share + second.union_share) / 2)


def test_predictions_are_what_the_shares_say() -> None:
    """64 neurons of 64 floats up and 2 down; two layers, one of them in the window."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.where(torch.rand(1, 20, 64, generator=generator) < 0.1, 1.0, -1.0) for _ in range(3)]
    report = coverage(Chosen(64), batches, windows=(1, 4), rates=RATES, ffn_budget="99%")
    dense = 64 * (256 + 8)
    assert report.budget_bytes == 2 * dense * 99 // 100
    step = {one.way: one for one in report.step_predictions}
    assert (step["layers"].window, step["layers"].read_bytes) == (1, 2 * dense)
    assert step["layers"].io_s == pytest.approx(2 * dense / 2e6)
    union = sum(ffn.union_share for ffn in report.ffns) / 2 * 64 * 4096
    assert step["rows"].read_bytes == pytest.approx(dense + union)
    assert step["rows"].io_s == pytest.approx(dense / 2e6 + union / 1e6)
    token = {one.way: one for one in report.token_predictions}
    assert (token["layers"].window, token["layers"].read_bytes) == (1, 2 * dense)
    for way, stays in (("rows", 64 * 256), ("rows, predicted", 0)):
        kept = {
            k: sum(stays + ffn.used_share[k] * 64 * (264 if not stays else 8) for ffn in report.ffns) for k in (1, 4)
        }
        assert token[way].window == max(k for k in kept if kept[k] <= report.budget_bytes)
        assert token[way].resident_bytes == pytest.approx(kept[token[way].window])
        assert token[way].read_bytes == pytest.approx(sum(ffn.new_share[token[way].window] for ffn in report.ffns)
                                                      * 64 * 4096)  # fmt: skip


def test_a_full_union_is_advised_against() -> None:
    """Few neurons a token, but 30 tokens use all of them: for a batch layers, and it says so."""
    torch.manual_seed(0)
    report = coverage(_sparse_opt_like(64, 0.1), [torch.randn(1, 60, 64)])
    assert report.active_share < 0.3
    assert report.union_share >= 0.85
    assert report.training.way == report.advice.way == "layers"
    assert "rows do not cut the reads of a batched step" in report.training.reason


def test_a_sparse_batch_is_advised_rows() -> None:
    """Rows of a page each, 4 tokens: their union is small, and the masked backward reads no more than it."""
    torch.manual_seed(0)
    model = _sparse_opt_like(512, 0.05)
    report = coverage(model, [torch.randn(1, 4, 512)], windows=(1, 2))
    assert report.union_share < 0.5
    assert report.training.way == "rows"
    assert all(one.read_bytes > 0 for one in report.step_predictions)
    slow_rows = Rates(ReadRates([RatePoint(4096, 1, 1.0), RatePoint(1 << 20, 1, 1e9)]), 1, 1, 1)
    assert coverage(model, [torch.randn(1, 4, 512)], rates=slow_rows).training.way == "layers"


def test_generation_is_advised_by_what_a_token_reads() -> None:
    torch.manual_seed(0)
    model = _sparse_opt_like(512, 0.05)

    def one_by_one(batch: Tensor) -> None:
        for place in range(batch.shape[1]):
            model(batch[:, place : place + 1])

    report = coverage(model, [torch.randn(1, 12, 512)], run=one_by_one, ffn_budget="75%", windows=(1, 2, 4))
    assert report.advice is report.generation
    assert report.advice.way == "rows"
    rows = next(one for one in report.token_predictions if one.way == "rows")
    layers = next(one for one in report.token_predictions if one.way == "layers")
    assert rows.window == 4
    assert 0 < rows.read_bytes < layers.read_bytes / 3
    too_small = coverage(model, [torch.randn(1, 12, 512)], run=one_by_one, ffn_budget="50%", windows=(1, 2, 4))
    assert too_small.advice.way == "layers"
    assert "do not fit the budget; a trained predictor" in too_small.advice.reason


def test_what_fits_is_resident() -> None:
    report = coverage(Chosen(), [signs("1.......")], ffn_budget="1MiB", rates=RATES)
    assert report.advice.way == report.training.way == report.generation.way == "resident"
    assert [one.read_bytes for one in report.token_predictions + report.step_predictions] == [0, 0]


def test_without_relu_it_says_so() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    report = coverage(model, [torch.randn(3, 8)])
    assert report.ffns == ()
    assert report.advice.way == "layers"
    assert "no FFN with ReLU was found among 2 linear layers" in str(report)


def test_modes_and_batches_of_every_form() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))
    model[1].eval()
    for batch in (torch.randn(3, 8), (torch.randn(3, 8),), {"input": torch.randn(3, 8)}):
        assert len(coverage(model, [batch]).ffns) == 1
    assert [module.training for module in (model, *model)] == [True, True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_report_is_data_and_text() -> None:
    report = coverage(Chosen(), [signs("1.......", "11......")], windows=(1, 16), rates=RATES)
    found = json.loads(json.dumps(report.as_dict()))
    assert found["ffns"][0]["used_share"] == {"1": 1.5 / 8, "16": None}
    assert found["advice"]["way"] == report.advice.way
    assert "first.2" in str(report) and "to train: layers" in str(report)


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        coverage(Chosen(), [])
    for windows in ((), (0,), (1.5,)):
        with pytest.raises(InputError, match="windows"):
            coverage(Chosen(), [signs("1.......")], windows=windows)
    with pytest.raises(ValueError, match="budget"):
        coverage(Chosen(), [signs("1.......")], ffn_budget="many")


def test_rates_may_be_measured(tmp_path) -> None:
    report = coverage(Chosen(), [signs("1.......", "11......")], windows=(1,), rates=tmp_path)
    assert all(one.io_s > 0 for one in report.step_predictions)


def test_it_is_part_of_the_face() -> None:
    assert memsys.coverage is coverage


# The reference's own measurement, on 1725 tokens of another text: share a token, s_agg of 4 and of 16 tokens.
@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        ("encoder.0", (0.181, 0.489, 0.880)),
        ("encoder.1", (0.161, 0.449, 0.826)),
        ("encoder.5", (0.226, 0.561, 0.898)),
        ("decoder.0", (0.276, 0.667, 0.963)),
        ("decoder.1", (0.373, 0.721, 0.960)),
    ],
)
def test_a_real_model_is_as_active_as_measured_before(layer: str, wanted: tuple[float, ...], marian_report) -> None:
    (ffn,) = [one for one in marian_report.ffns if one.down.startswith(layer)]
    assert ffn.neurons == marian.NEURONS
    assert ffn.token_count > 150
    assert (ffn.active_share, ffn.used_share[4], ffn.used_share[16]) == pytest.approx(wanted, abs=0.04)
    assert ffn.used_share[5] == pytest.approx(ffn.used_share[4] + ffn.new_share[4], abs=0.01)


def test_a_real_model_is_advised_layers(marian_report) -> None:
    assert len(marian_report.ffns) == marian.ENCODER_LAYERS + marian.DECODER_LAYERS
    assert marian_report.union_share > 0.85
    assert marian_report.training.way == "layers"


@pytest.fixture(scope="module")
def marian_report():
    marian.needs_marian()
    model, threads = marian.load(), torch.get_num_threads()
    torch.set_num_threads(1)  # a token at a time is too little work to share
    try:
        return coverage(model, LEGAL_TEXT, run=model.translate)
    finally:
        torch.set_num_threads(threads)


def _sparse_opt_like(width: int, share: float) -> nn.Sequential:
    """Two ungated FFNs of 2 * width neurons, of which about `share` are active for a random token."""

    def ffn() -> nn.Sequential:
        one = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        with torch.no_grad():
            one[0].weight.normal_(std=width**-0.5)
            one[0].bias.fill_(float(torch.distributions.Normal(0, 1).icdf(torch.tensor(share))))
            one[2].weight.normal_(std=width**-0.5 / share**0.5)
        return nn.Sequential(nn.LayerNorm(width), *one)

    return nn.Sequential(ffn(), ffn())
