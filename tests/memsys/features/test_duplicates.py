"""sum_duplicates: rows of one index summed in the order given, to the last bit, so that training runs repeat."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys
from hypothesis import given, settings
from hypothesis import strategies as st

needs_memsys()

from memsys.features.duplicates import positive, sum_duplicates  # noqa: E402

# Values of many sizes, so that another order of summation gives other bits.
values = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@st.composite
def indices_and_rows(draw):
    index = draw(st.lists(st.integers(0, draw(st.integers(0, 12))), max_size=40))
    width = draw(st.integers(0, 4))
    rows = draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=len(index), max_size=len(index)))
    return torch.tensor(index, dtype=torch.int64), torch.tensor(rows, dtype=torch.float64).reshape(len(index), width)


def summed_in_order(index, rows):
    """The same by a dictionary: Python floats are float64."""
    sums = {}
    for which, row in zip(index.tolist(), rows.tolist(), strict=True):
        sums[which] = [a + b for a, b in zip(sums[which], row, strict=True)] if which in sums else row
    distinct = sorted(sums)
    return distinct, torch.tensor([sums[which] for which in distinct], dtype=rows.dtype).reshape(
        len(sums), rows.shape[1]
    )


@settings(deadline=None, max_examples=200)
@given(indices_and_rows())
def test_sums_are_those_of_a_dictionary_to_the_last_bit(case):
    index, rows = case
    before = rows.clone()
    distinct, summed = sum_duplicates(index, rows)
    wanted_distinct, wanted = summed_in_order(index, rows)
    assert distinct.tolist() == wanted_distinct
    assert torch.equal(summed, wanted)
    assert torch.equal(rows, before)


@settings(deadline=None, max_examples=50)
@given(indices_and_rows(), st.randoms(use_true_random=False))
def test_the_order_of_other_indices_changes_nothing(case, rng):
    index, rows = case
    places = list(range(len(index)))
    rng.shuffle(places)
    order = sorted(places, key=lambda place: int(index[place]) % 3)  # interleaves the indices anew,
    order = torch.tensor(order, dtype=torch.int64)
    for which in index.unique():  # and keeps each one's own order
        mine = index[order] == which
        order[mine] = order[mine].sort().values
    for found, wanted in zip(sum_duplicates(index[order], rows[order]), sum_duplicates(index, rows), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("row_shape", [(), (1,), (33,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("is_distinct", [True, False])
def test_row_shapes(row_shape, is_distinct):
    index = torch.randperm(50) if is_distinct else torch.randint(20, (50,))
    rows = torch.randn(50, *row_shape, dtype=torch.float64)
    distinct, summed = sum_duplicates(index, rows)
    wanted_distinct, wanted = summed_in_order(index, rows.reshape(50, -1) if rows.numel() else rows.new_empty(50, 0))
    assert distinct.tolist() == wanted_distinct
    assert torch.equal(summed, wanted.reshape(len(distinct), *row_shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers_are_exact(dtype):
    index = torch.randint(5, (60,))
    rows = torch.randint(0, 3, (60, 4), dtype=dtype)
    distinct, summed = sum_duplicates(index, rows)
    assert summed.dtype is dtype
    assert torch.equal(torch.zeros(5, 4, dtype=dtype).index_add_(0, index, rows)[distinct], summed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_other_dtypes_are_near_and_repeat(dtype):
    index = torch.randint(100, (5000,))
    rows = torch.randn(5000, 16, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    distinct, summed = sum_duplicates(index, rows)
    assert summed.dtype is dtype
    exact = rows.to(torch.complex128) if dtype.is_complex else rows.double()
    wanted = torch.zeros(100, 16, dtype=exact.dtype).index_add_(0, index, exact)[distinct]
    assert ((summed - wanted).abs().max() / rows.abs().max()) < 60 * torch.finfo(dtype).eps
    assert torch.equal(sum_duplicates(index, rows)[1], summed)


def test_nan_and_infinity_stay_in_their_rows():
    index = torch.tensor([2, 0, 2, 1, 0])
    rows = torch.tensor([[float("inf")], [float("nan")], [1.0], [3.0], [1.0]])
    _, summed = sum_duplicates(index, rows)
    assert summed[0].isnan() and summed[1] == 3 and summed[2] == float("inf")


def test_the_number_of_threads_changes_no_bit():
    index = torch.randint(300, (40_000,), generator=torch.Generator().manual_seed(0))
    rows = torch.randn(40_000, 32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(sum_duplicates(index, rows)[1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_positive_counts_from_the_start():
    for dtype in (torch.int32, torch.int64):
        found = positive(torch.tensor([0, -1, 4, -5], dtype=dtype), 5)
        assert found.tolist() == [0, 4, 4, 0] and found.dtype is torch.int64
