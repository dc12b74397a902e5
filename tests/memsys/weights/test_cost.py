"""The cost model: sums of its terms, monotone in what it should be, equal to the measured rates at their points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsys.errors import InputError
from memsys.weights.cost import Cost, RatePoint, Rates, Read, ReadRates, Work, comparison, predict, worn_share

CHUNKS, DEPTHS = (4096, 32768, 1 << 20), (1, 8)
SIZES = st.floats(0, 1e12)
CHUNK_SIZES, QUEUE_DEPTHS = st.floats(1, 1e9), st.integers(1, 500)


def rates_of(*values: float) -> Rates:
    """Rates by depth, then chunk; 4 GB/s copied, 10 GB/s touched, 1 TFLOP/s."""
    places = [(depth, chunk) for depth in DEPTHS for chunk in CHUNKS]
    points = [RatePoint(chunk, depth, value) for (depth, chunk), value in zip(places, values, strict=True)]
    return Rates(ReadRates(points), 4e9, 10e9, 1e12)


def any_rates() -> st.SearchStrategy[Rates]:
    return st.lists(st.floats(1e3, 1e11), min_size=6, max_size=6).map(lambda values: rates_of(*values))


RISING = rates_of(1e8, 4e8, 8e8, 2e8, 16e8, 16e8)


def test_measured_points_are_met_and_between_them_lies_the_mean_of_logarithms() -> None:
    assert [RISING.read.at(chunk, 1) for chunk in CHUNKS] == pytest.approx([1e8, 4e8, 8e8])
    assert RISING.read.at((4096 * 32768) ** 0.5, 1) == pytest.approx(2e8)
    assert RISING.read.at(32768, 8**0.5) == pytest.approx(8e8)
    assert RISING.read.at(2048, 1) == pytest.approx(0.5e8)  # as long as a read of 4096
    assert RISING.read.at(1 << 30, 64) == pytest.approx(16e8)


def test_a_large_read_is_no_slower_than_small_ones() -> None:
    falling = rates_of(9e8, 2e8, 3e8, 1e8, 1e8, 1e9)
    assert [falling.read.at(chunk, 1) for chunk in CHUNKS] == pytest.approx([9e8] * 3)
    assert [falling.read.at(chunk, 8) for chunk in CHUNKS] == pytest.approx([9e8, 9e8, 1e9])


@given(rates=any_rates(), chunks=st.tuples(CHUNK_SIZES, CHUNK_SIZES), depths=st.tuples(QUEUE_DEPTHS, QUEUE_DEPTHS))
def test_rates_never_fall(rates: Rates, chunks: tuple[float, float], depths: tuple[int, int]) -> None:
    low, high = rates.read.at(min(chunks), min(depths)), rates.read.at(max(chunks), max(depths))
    assert 0 < low <= high * (1 + 1e-9)


@given(rates=any_rates(), sizes=st.tuples(SIZES, SIZES), chunk=CHUNK_SIZES, depth=QUEUE_DEPTHS)
def test_more_work_takes_no_less(rates: Rates, sizes: tuple[float, float], chunk: float, depth: int) -> None:
    for make in (
        lambda size: Work((Read(size, chunk, depth),)),
        lambda size: Work(copied_bytes=size),
        lambda size: Work(flops=size),
        lambda size: Work(touched_bytes=size),
    ):
        less, more = predict(make(min(sizes)), rates), predict(make(max(sizes)), rates)
        assert less.total_s <= more.total_s
        assert less.overlapped_s <= less.total_s <= 2 * less.overlapped_s * (1 + 1e-9)


@given(rates=any_rates(), sizes=st.tuples(SIZES, SIZES), chunk=CHUNK_SIZES)
def test_costs_add(rates: Rates, sizes: tuple[float, float], chunk: float) -> None:
    one, other = (Read(size, chunk) for size in sizes)
    both = predict(Work((one, other)), rates)
    apart = predict(Work((one,)), rates) + predict(Work((other,)), rates)
    assert both.io_s == pytest.approx(apart.io_s)
    assert both.read_bytes == pytest.approx(sum(sizes))


def test_the_terms() -> None:
    work = Work((Read(8e8, 32768, 8),), copied_bytes=4e8, flops=1e11, touched_bytes=2e9)
    cost = predict(work, RISING)
    assert (cost.io_s, cost.management_s, cost.compute_s) == pytest.approx((0.5, 0.1, 0.2))
    assert cost.total_s == pytest.approx(0.8)
    assert cost.overlapped_s == pytest.approx(0.5)
    assert predict(Work(flops=1e12, touched_bytes=2e9), RISING).compute_s == pytest.approx(1)


def test_the_papers_table_follows_from_its_rates() -> None:
    """OPT-6.7B at half the memory (table 2): 0.2 GB in chunks of 8 KiB at 1.25 GB/s, of 16 KiB at 2.25 GB/s."""
    read = ReadRates([RatePoint(8192, 32, 1.25e9), RatePoint(16384, 32, 2.25e9), RatePoint(1 << 20, 32, 6.1e9)])
    rates = Rates(read, 1e10, 1e10, 1e12)
    found = [predict(Work((Read(size, chunk, 32),)), rates).io_s * 1e3
             for size, chunk in ((13.4e9, 1 << 20), (0.2e9, 8192), (0.2e9, 16384))]  # fmt: skip
    assert found == pytest.approx([2196, 164, 87], rel=0.03)


def test_frozen_weights_wear_no_drive() -> None:
    frozen = predict(Work((Read(1e9, 4096),)), RISING)
    assert frozen.written_bytes == worn_share(frozen, 10**9, 300e12) == 0
    assert "no byte written" in str(frozen)
    written = predict(Work(written_bytes=3e9), RISING)
    assert worn_share(written, 1000, 300e12) == pytest.approx(0.01)
    assert "3000.000 MB written" in str(written)


def test_predicted_against_measured_is_a_table() -> None:
    text = comparison(Cost(io_s=0.2, read_bytes=4e6), Cost(io_s=0.1, compute_s=0.1, read_bytes=4e6))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["I/O"] == ["200.000", "ms", "100.000", "ms", "2.00"]
    assert rows["sum"][-1] == rows["read"][-1] == "1.00"
    assert rows["management"][-1] == "-"


def test_nonsense_is_refused() -> None:
    for points in ([], [RatePoint(4096, 1, 0)], [RatePoint(4096, 1, 1)] * 2,
                   [RatePoint(4096, 1, 1), RatePoint(8192, 2, 1)]):  # fmt: skip
        with pytest.raises(InputError, match="rates"):
            ReadRates(points)
    with pytest.raises(InputError, match="copy_bytes_per_s"):
        Rates(RISING.read, 0, 1, 1)
    for read in (Read(-1, 4096), Read(1, 0), Read(1, 4096, 0)):
        with pytest.raises(InputError, match="predict"):
            predict(Work((read,)), RISING)
    with pytest.raises(InputError, match="endurance"):
        worn_share(Cost(), 1, 0)
