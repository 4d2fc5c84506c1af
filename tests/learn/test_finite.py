"""Whether numbers are finite, by their sum where that says it, and one by one where it does not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.learn.finite import is_finite

NUMBERS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, -0.0])


@given(
    st.lists(NUMBERS, max_size=40),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_it_is_what_each_number_says(numbers, dtype):
    values = torch.tensor(numbers, dtype=dtype)
    assert is_finite(values) == bool(torch.isfinite(values).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 49_999, 99_999])
def test_one_bad_number_among_many_is_found(bad, place):
    values = torch.ones(100_000)
    assert is_finite(values)
    values[place] = bad
    assert not is_finite(values)


def test_infinities_that_cancel_are_no_number():
    assert not is_finite(torch.tensor([math.inf, -math.inf, 1.0]))


def test_finite_numbers_whose_sum_is_not_are_finite():
    assert not torch.isfinite(torch.full((4,), 3e38).sum())
    assert is_finite(torch.full((4,), 3e38))
    assert is_finite(torch.full((9,), 60_000.0, dtype=torch.float16))


@pytest.mark.parametrize(
    "values", [torch.tensor(()), torch.tensor(3), torch.tensor([True, False]), torch.zeros(2, 0)]
)
def test_other_kinds_of_tensors(values):
    assert is_finite(values)
