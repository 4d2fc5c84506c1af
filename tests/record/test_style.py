"""Units, percentiles and names: numbers are written so that they can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.record.style import (
    BYTES,
    SECONDS,
    human_bytes,
    human_time,
    percentiles,
    round_times_s,
    scale,
    some,
    spread,
)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
@settings(max_examples=50)
def test_percentiles_are_rounds_that_so_many_did_not_exceed(lasted):
    ends = np.cumsum(lasted)
    times = round_times_s({"round": np.arange(len(ends)) + 1, "time_us": ends})
    np.testing.assert_array_equal(times, np.array(lasted) / 1e6)
    for rank, value in percentiles(times).items():
        assert value in times
        assert (times <= value).mean() >= rank / 100 > (times < value).mean()


@given(st.floats(1e-6, 1e15))
@settings(max_examples=50)
def test_a_unit_leaves_a_number_that_can_be_read(largest):
    unit, size = scale(largest, BYTES)
    assert unit == "B" or largest / size >= 2
    assert largest < 2000 * size or unit == "TB"


@given(st.floats(0, 1e14))
@settings(max_examples=50)
def test_bytes_are_written_within_half_a_percent(size_bytes):
    number, unit = human_bytes(size_bytes).split()
    assert float(number) * dict(BYTES)[unit] == pytest.approx(size_bytes, rel=0.0051)
    assert "e" not in number or size_bytes < 1e-3


@given(st.floats(1, 1e7))
@settings(max_examples=50)
def test_times_are_written_within_a_percent(time_s):
    words = human_time(time_s).split()
    parts = {unit: float(number) for number, unit in zip(words[::2], words[1::2])}
    assert sum(number * dict(SECONDS)[unit] for unit, number in parts.items()) == pytest.approx(
        time_s, rel=0.021
    )
    assert 1 <= len(parts) <= 2
    assert parts.get("s", 0) < 60
    assert parts.get("min", 0) < 60
    assert parts.get("h", 0) < 24


@given(st.integers(1, 1000))
@settings(max_examples=50)
def test_named_places_are_few_enough_to_be_read(count):
    at, names = some(np.arange(count) + 7)
    assert len(at) <= 30
    assert names == [str(place + 7) for place in at]


def test_spread_is_one_where_a_logarithm_would_not_do():
    assert (
        spread(np.array([])) == spread(np.array([-1.0, 100.0, 1.0])) == spread(np.array([0.0, np.nan])) == 1.0
    )


def test_the_state_before_the_first_round_is_no_round():
    rounds = {"round": np.array([0, 1, 2]), "time_us": np.array([1, 3, 8]) * 1_000_000}
    assert round_times_s(rounds).tolist() == [2.0, 5.0]
    later = {name: column[1:] for name, column in rounds.items()}
    assert round_times_s(later).tolist() == [3.0, 5.0]
