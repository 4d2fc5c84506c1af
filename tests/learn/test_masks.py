"""Masks follow from a job's key: the numbers are SplitMix64's, and the same however many clients are mapped over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap
from torch.nn import functional

from fedsim.learn.masks import BITS, Draws, Masked, hashed

KEY = torch.tensor(12345)


def test_the_bits_are_those_of_splitmix64():
    # the first three numbers of the reference implementation with seed 1234567
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = hashed(torch.tensor(1234567), torch.arange(3) + 1).tolist()
    assert [one % 2**64 for one in found] == wanted


def dropped(function, x, key=KEY, step=0, **more):
    with Masked(Draws(key, step)):
        return function(x, **more)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_a_share_of_p_is_dropped_and_the_rest_scaled(p):
    out = dropped(functional.dropout, torch.ones(20_000, dtype=torch.float64), p=p)
    # of 20,000 numbers a share of p, give or take five standard deviations of sqrt(p (1 - p) / 20,000)
    assert abs(float((out == 0).double().mean()) - p) <= 5 * (p * (1 - p) / 20_000) ** 0.5
    assert torch.all((out == 0) | ((out - 1 / max(1 - p, 1e-9)).abs() < 1e-12))


def test_what_differs_in_key_step_or_call_is_dropped_otherwise():
    x = torch.ones(64)
    masks = [dropped(functional.dropout, x, torch.tensor(key), step) for key in (1, 2) for step in (0, 1)]
    with Masked(Draws(torch.tensor(1))):
        masks += [functional.dropout(x), functional.dropout(x)][1:]
    assert len({tuple(mask.tolist()) for mask in masks}) == 5


def test_evaluation_drops_nothing_and_counts_nothing():
    draws = Draws(KEY)
    with Masked(draws):
        x = torch.ones(8)
        assert functional.dropout(x, 0.5, training=False) is x
        assert torch.equal(nn.Dropout(0.5).eval()(x), x)
    assert draws.calls == 0


def test_in_place_is_in_place():
    x = torch.ones(64)
    out = dropped(functional.dropout, x, inplace=True)
    assert out is x
    assert torch.equal(x, dropped(functional.dropout, torch.ones(64)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d(0.5), (6, 4, 5)),
        (nn.Dropout2d(0.5), (6, 4, 5, 5)),
        (nn.Dropout3d(0.5), (6, 4, 2, 2, 2)),
    ],
)
def test_whole_channels_are_dropped(layer, shape):
    sides = int(type(layer).__name__[-2])
    out = dropped(layer, torch.ones(shape)).flatten(-sides)
    assert torch.all(out == out[..., :1])
    assert 0 < int((out[..., 0] == 0).sum()) < out[..., 0].numel()


def test_a_share_out_of_range_is_refused_as_torch_does():
    with pytest.raises(ValueError, match=r"has to be between 0 and 1, but got 1\.5"):
        dropped(functional.dropout, torch.ones(3), p=1.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(1, 5))
def test_a_client_in_a_stack_draws_what_it_draws_alone(seeds, batch):
    keys = torch.tensor(seeds)
    x = torch.ones(len(seeds), batch, 3)
    stacked = vmap(lambda one, key: dropped(functional.dropout, one, key))(x, keys)
    for i, key in enumerate(keys):
        alone = dropped(functional.dropout, x[i], key)
        assert torch.equal(stacked[i], alone)
        # padding behind the samples changes nothing for them
        padded = dropped(functional.dropout, torch.ones(batch + 2, 3), key)
        assert torch.equal(padded[:batch], alone)


def test_uniform_and_normal_numbers_have_their_moments():
    draws = Draws(KEY)
    flat, bell = draws.uniform((40_000,)), draws.normal((40_000,))
    assert float(flat.min()) >= 0
    assert float(flat.max()) < 1
    # means within five standard errors: sqrt(1/12/40,000) and sqrt(1/40,000); the variance of a square is 2
    assert abs(float(flat.mean()) - 0.5) < 5 * (1 / 12 / 40_000) ** 0.5
    assert abs(float(bell.mean())) < 5 * (1 / 40_000) ** 0.5
    assert abs(float(bell.square().mean()) - 1) < 5 * (2 / 40_000) ** 0.5
    assert int(Draws(KEY).bits((100,)).max()) < 2**BITS


@pytest.mark.filterwarnings("ignore:dropout[23]d")
@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d"])
@pytest.mark.parametrize("shape", [(32, 5), (32, 6, 5), (32, 6, 5, 3), (32, 6, 5, 3, 2)])
def test_what_is_dropped_as_a_whole_is_what_torch_drops_as_a_whole(name, shape):
    function, x = getattr(functional, name), torch.ones(shape)
    if name == "dropout1d" and len(shape) > 3:
        for call in (function, lambda given: dropped(function, given)):
            with pytest.raises(RuntimeError, match="Expected 2D or 3D input"):
                call(x)
        return

    def constant(mask):
        return [bool((mask == mask.select(i, 0).unsqueeze(i)).all()) for i in range(mask.dim())]

    with torch.random.fork_rng():
        torch.manual_seed(0)  # of 32 or more, some are dropped and others are not
        wanted = constant(function(x, 0.5))
    found = dropped(function, x)
    assert (constant(found), found.shape) == (wanted, x.shape)
