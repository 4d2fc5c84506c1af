"""Codecs: what is read is what was written, in as many bytes as promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from fedsim.flower.records import encoded_bytes, npy_bytes
from fedsim.learn.codec import Quantised, Sparse

CODECS = [Sparse(0.01), Sparse(0.3), Sparse(1.0), Quantised(8), Quantised(16)]
NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, st.sampled_from(CODECS), st.sampled_from([torch.float32, torch.float64]))
def test_writing_again_changes_nothing(numbers, codec, dtype):
    vector = torch.tensor(numbers, dtype=dtype)
    once = codec.decode(codec.encode(vector), len(vector))
    again = codec.decode(codec.encode(once), len(vector))
    assert torch.equal(once, again)
    assert once.dtype == dtype


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_arrays_have_the_size_that_is_counted(codec, size, dtype):
    vector = torch.from_numpy(np.random.default_rng(0).standard_normal(size).astype(dtype))
    written = codec.encode(vector)
    pieces = codec.pieces(size, dtype)
    assert written.keys() == pieces.keys()
    for name, (shape, kind) in pieces.items():
        array = written[name].numpy()
        assert (array.shape, str(array.dtype)) == (shape, kind)
    count = sum(len(name) + npy_bytes(*piece) for name, piece in pieces.items())
    assert encoded_bytes(codec, size, dtype) == count


def test_bytes_by_formula():
    header = 128
    assert encoded_bytes(Sparse(0.1), 1000, "float32") == 100 * (4 + 4) + 2 * header + len("indicesvalues")
    assert encoded_bytes(Quantised(8), 1000, "float64") == 1000 + 8 + 2 * header + len("codesscale")


@pytest.mark.parametrize(("share", "size", "count"), [(0.1, 30, 3), (0.1, 31, 4), (1e-9, 5, 1), (1.0, 5, 5)])
def test_a_share_is_rounded_up(share, size, count):
    assert Sparse(share).count(size) == count


def test_of_equal_numbers_the_first_are_written():
    written = Sparse(0.5).encode(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert written["indices"].tolist() == [0, 1]


@settings(max_examples=30, deadline=None)
@given(NUMBERS)
def test_rounding_errs_by_half_a_level_at_most(numbers):
    vector = torch.tensor(numbers, dtype=torch.float64)
    codec = Quantised(8)
    level = vector.abs().max() / 127
    error = codec.decode(codec.encode(vector), len(vector)) - vector
    assert float(error.abs().max()) <= float(level) * 0.5 * (1 + 1e-9)


def test_rounding_by_chance_is_right_on_average():
    draws = torch.from_numpy(np.random.default_rng(1).random((4000, 3)))
    vector = torch.tensor([127.0, 3.25, -0.5], dtype=torch.float64)
    codec = Quantised(8)
    read = torch.stack([codec.decode(codec.encode(vector, up), 3) for up in draws])
    assert set(read[:, 1].tolist()) == {3.0, 4.0}
    assert read.mean(0).tolist() == pytest.approx([127.0, 3.25, -0.5], abs=0.05)


@pytest.mark.parametrize("codec", CODECS)
def test_in_a_stack_as_alone(codec):
    stack = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 20)))
    together = vmap(lambda v: codec.decode(codec.encode(v), 20))(stack)
    assert torch.equal(together, torch.stack([codec.decode(codec.encode(v), 20) for v in stack]))


def test_zeros_stay_zeros():
    for codec in CODECS:
        assert codec.decode(codec.encode(torch.zeros(6)), 6).tolist() == [0.0] * 6
