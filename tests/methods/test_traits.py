"""What a run reads of strategies: ours, Flower's, and those of others that say little."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsim.flower.settings import Settings
from fedsim.flower.simulate.weighting import weigh
from fedsim.flower.with_selector import Chosen
from fedsim.methods.select import BySize, Uniform
from fedsim.methods.traits import Traits
from strategies.peer.push_sum import PushSum


class Silent:
    """Says nothing."""


def test_a_strategy_that_says_nothing_is_plain():
    assert Traits.of(Silent()) == Traits()
    assert Settings.of(Silent()) == Settings()
    assert (Traits().timing_depends_on_values, Traits().weighted, Traits().updates) == (None, None, None)


def test_what_is_around_a_strategy_is_read_through():
    select = BySize(seed=1)
    around = weigh(Chosen(FedAvg(min_available_nodes=4), select), select, None)
    assert Traits.of(around).selector is select
    assert Traits.of(around).weighting == "uniform"
    assert Settings.of(around).min_available_nodes == 4


def test_a_peer_strategy_declares_what_topologies_it_can_use():
    assert Traits.of(PushSum).directed
    assert Traits.of(PushSum).varying


def test_what_another_calls_select_is_no_selector():
    class Own(Silent):
        select = staticmethod(sorted)

    assert Traits.of(Own()).select is sorted
    assert Traits.of(Own()).selector is None
    Own.select = Uniform()
    assert Traits.of(Own()).selector is Own.select


@pytest.mark.parametrize(
    ("share", "least", "asked"), [(0.5, 2, 5), (0.15, 1, 1), (0.05, 1, 1), (0.1, 4, 4), (0.1, 40, 10)]
)
def test_so_many_of_ten_are_asked(share, least, asked):
    known = Settings(fraction_train=share, min_train_nodes=least)
    assert (known.asked(10), known.judged(10)) == (asked, 10)
    known = Settings(fraction_evaluate=share, min_evaluate_nodes=least)
    assert (known.asked(10), known.judged(10)) == (10, asked)
