"""Partitions: nothing lost, nothing twice, nobody empty; and the shapes that each rule promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data import partition
from fedsim.rng import stream

RULES = {
    "iid": {},
    "dirichlet": {"alpha": 0.1},
    "shards": {"labels_per_client": 2},
    "quantity": {"sigma": 1.0},
}


def deal(name, labels, clients, seed=0, **params):
    return getattr(partition, name)(labels, clients, rng=stream(seed, "partition"), **params)


def assert_complete(owned, samples, clients, minimum=1):
    assert len(owned) == clients
    for own in owned:
        assert own.dtype == np.int64
        assert len(own) >= minimum
        assert (np.diff(own) > 0).all()
    assert np.sort(np.concatenate(owned)).tolist() == list(range(samples))


labels_of_any_kind = st.lists(st.integers(-3, 8), min_size=1, max_size=60).map(np.array)


@settings(max_examples=50, deadline=None)
@given(labels=labels_of_any_kind, data=st.data(), seed=st.integers(0, 2**31))
def test_every_sample_belongs_to_one_client(labels, data, seed):
    minimum = data.draw(st.integers(1, min(3, len(labels))))
    clients = data.draw(st.integers(1, len(labels) // minimum))
    alpha = data.draw(st.floats(1e-3, 100))
    per_client = data.draw(st.integers(1, len(np.unique(labels))))
    sigma = data.draw(st.floats(0, 50))
    assert_complete(deal("iid", labels, clients, seed), len(labels), clients)
    for name, params in [
        ("dirichlet", {"alpha": alpha}),
        ("shards", {"labels_per_client": per_client}),
        ("quantity", {"sigma": sigma}),
    ]:
        owned = deal(name, labels, clients, seed, minimum=minimum, **params)
        assert_complete(owned, len(labels), clients, minimum)


@pytest.mark.parametrize("name", RULES)
def test_same_stream_same_partition(name):
    labels = np.arange(200) % 10
    first, again, other = (deal(name, labels, 7, seed, **RULES[name]) for seed in (1, 1, 2))
    assert [own.tolist() for own in first] == [own.tolist() for own in again]
    assert [own.tolist() for own in first] != [own.tolist() for own in other]


@pytest.mark.parametrize("name", RULES)
def test_as_many_clients_as_samples_is_possible(name):
    labels = np.arange(30) % 5
    assert_complete(deal(name, labels, 30, **RULES[name]), 30, 30)


@pytest.mark.parametrize("name", RULES)
def test_more_clients_than_samples_is_refused(name):
    with pytest.raises(
        BadValue, match=r"31 clients with at least 1 .* need 31 samples, and there are 30"
    ) as caught:
        deal(name, np.arange(30) % 5, 31, **RULES[name])
    assert caught.value.key == "clients"


@pytest.mark.parametrize("name", ["dirichlet", "shards", "quantity"])
def test_a_minimum_out_of_reach_is_refused(name):
    with pytest.raises(BadValue, match=r"10 clients with at least 4 .* need 40 samples, and there are 30"):
        deal(name, np.arange(30) % 5, 10, minimum=4, **RULES[name])
    with pytest.raises(BadValue, match="at least 1 sample") as caught:
        deal(name, np.arange(30) % 5, 10, minimum=0, **RULES[name])
    assert caught.value.key == "minimum"


def test_no_clients_is_refused():
    with pytest.raises(BadValue, match="at least 1 client"):
        deal("iid", np.zeros(3), 0)


@given(samples=st.integers(1, 200), data=st.data())
@settings(max_examples=30, deadline=None)
def test_iid_sizes_differ_by_at_most_one(samples, data):
    clients = data.draw(st.integers(1, samples))
    sizes = [len(own) for own in deal("iid", np.zeros(samples), clients)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_mixes_the_labels():
    labels = np.repeat(np.arange(10), 100)
    for own in deal("iid", labels, 5):
        # 200 draws of 10 classes: mean 20, deviation below 4.3; six of them is beyond any chance.
        assert np.abs(np.bincount(labels[own], minlength=10) - 20).max() < 26
        assert np.bincount(labels[own], minlength=10).min() > 0


def test_dirichlet_is_even_for_a_large_alpha():
    labels = np.repeat(np.arange(10), 100)
    for own in deal("dirichlet", labels, 10, alpha=1e9):
        assert np.bincount(labels[own], minlength=10).tolist() == [10] * 10


def test_dirichlet_gives_a_class_to_one_client_for_a_small_alpha():
    # The expected sum of a class's squared shares is (alpha + 1) / (M alpha + 1), here 1.001 / 1.01 = 0.991;
    # one class deviates by about 0.06, the mean of 400 by 0.003.
    labels = np.repeat(np.arange(400), 100)
    owned = deal("dirichlet", labels, 10, alpha=1e-3)
    shares = np.array([np.bincount(labels[own], minlength=400) for own in owned]) / 100
    assert abs((shares**2).sum(axis=0).mean() - 0.991) < 0.012


def test_dirichlet_proportions_have_the_right_spread():
    # A share of a symmetric Dirichlet has the variance (1/M)(1 - 1/M)/(M alpha + 1): here 0.25 * 0.75 / 5.
    labels = np.repeat(np.arange(400), 400)
    owned = deal("dirichlet", labels, 4, alpha=1.0)
    shares = np.bincount(labels[owned[0]], minlength=400) / 400
    assert abs(shares.mean() - 0.25) < 4 * (0.0375 / 400) ** 0.5
    assert abs(shares.var() - 0.0375) < 0.01


def test_dirichlet_fills_up_many_empty_clients():
    labels = np.arange(1000) % 10
    owned = deal("dirichlet", labels, 100, alpha=1e-3, minimum=10)
    assert_complete(owned, 1000, 100, 10)
    assert {len(own) for own in owned} == {10}


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_dirichlet_refuses_alpha(alpha):
    with pytest.raises(BadValue, match="alpha"):
        deal("dirichlet", np.arange(10), 2, alpha=alpha)


def test_shards_of_the_paper():
    # 100 clients, 2 of 10 classes each, 60,000 samples: 600 samples of exactly 2 classes for everyone.
    labels = np.repeat(np.arange(10), 6000)
    owned = deal("shards", labels, 100, labels_per_client=2)
    assert {len(own) for own in owned} == {600}
    assert {len(np.unique(labels[own])) for own in owned} == {2}
    assert all(sorted(np.unique(labels[own], return_counts=True)[1]) == [300, 300] for own in owned)


def test_shards_of_three_labels_straddle():
    labels = np.repeat(np.arange(10), 6000)
    owned = deal("shards", labels, 100, labels_per_client=3)
    assert {len(np.unique(labels[own])) for own in owned} == {2, 3}
    assert {len(own) for own in owned} == {600}


@settings(max_examples=50, deadline=None)
@given(
    classes=st.integers(2, 12), clients=st.integers(1, 15), c=st.integers(1, 12), seed=st.integers(0, 2**31)
)
def test_shards_hold_as_many_labels_as_promised(classes, clients, c, seed):
    c = min(c, classes)
    labels = np.arange(classes * 200) % classes
    owned = deal("shards", labels, clients, seed, labels_per_client=c)
    assert_complete(owned, len(labels), clients)
    held = [len(np.unique(labels[own])) for own in owned]
    if clients * c >= classes:
        least = c if classes % c == 0 else -(-c // 2)
        assert all(least <= number <= c for number in held)
    else:
        assert sum(held) == classes
        assert max(held) - min(held) <= 1


def test_shards_give_unheld_labels_to_someone():
    labels = np.repeat(np.arange(10), 5)
    owned = deal("shards", labels, 2, labels_per_client=2)
    assert [len(np.unique(labels[own])) for own in owned] == [5, 5]
    assert_complete(owned, 50, 2)


def test_shards_with_labels_rarer_than_their_holders():
    labels = np.array([0] * 97 + [1, 2, 3])
    owned = deal("shards", labels, 40, labels_per_client=1, minimum=2)
    assert_complete(owned, 100, 40, 2)


@pytest.mark.parametrize("c", [0, 6, -1])
def test_shards_refuse_impossible_runs(c):
    with pytest.raises(BadValue, match="between 1 and 5, the number of distinct labels") as caught:
        deal("shards", np.arange(50) % 5, 3, labels_per_client=c)
    assert (caught.value.key, caught.value.value) == ("labels_per_client", c)


@pytest.mark.parametrize(("name", "params"), [("dirichlet", {"alpha": 1.0}), ("shards", {})])
def test_targets_have_no_classes_to_divide(name, params):
    with pytest.raises(BadValue, match="use iid, quantity or natural"):
        deal(name, np.linspace(0, 1, 20), 2, **params)


def test_quantity_without_spread_is_equal():
    assert [len(own) for own in deal("quantity", np.zeros(1000), 8, sigma=0)] == [125] * 8


def test_quantity_sizes_are_log_normal():
    sizes = np.array([len(own) for own in deal("quantity", np.zeros(2_000_000), 1000, sigma=0.5)])
    # The deviation's estimate has a relative error of about 1 / sqrt(2 * 1000), 2 %.
    assert abs(np.log(sizes).std() - 0.5) < 0.05


def test_quantity_with_an_extreme_spread():
    owned = deal("quantity", np.zeros(100), 5, sigma=1e6)
    assert sorted(len(own) for own in owned) == [1, 1, 1, 1, 96]
    with pytest.raises(BadValue, match="sigma: -1"):
        deal("quantity", np.zeros(100), 5, sigma=-1)


def test_natural_follows_the_groups():
    owned = partition.natural(np.zeros(6), 3, groups=np.array([2, 0, 1, 0, 2, 2]))
    assert [own.tolist() for own in owned] == [[1, 3], [2], [0, 4, 5]]
    assert_complete(owned, 6, 3)


def test_natural_refuses_another_number_of_clients():
    with pytest.raises(BadValue) as caught:
        partition.natural(np.zeros(6), 5, groups=np.array([2, 0, 1, 0, 2, 2]))
    assert str(caught.value) == (
        "clients: 5: the dataset has 3 natural clients, which cannot be 5; set the number of clients to 3"
    )


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "does not say which client"),
        (np.array([0, 1]), "one group for each of the 3 samples"),
        (np.array([1, 2, 2]), "numbered 0 to 1, not 1 to 2"),
    ],
)
def test_natural_refuses_groups(groups, words):
    with pytest.raises(BadValue, match=words):
        partition.natural(np.zeros(3), 2, groups=groups)


@pytest.mark.parametrize("name", [*RULES, "natural"])
def test_called_by_name_with_what_the_engine_supplies(name):
    labels = np.arange(40) % 4
    supplied = {"labels": labels, "clients": 4, "rng": stream(0, "partition"), "groups": labels}
    owned = parts.call(parts.find("partitions", name), RULES.get(name, {}), supplied)
    assert_complete(owned, 40, 4)


@pytest.mark.parametrize("name", RULES)
def test_labels_are_left_as_they_were(name):
    labels = np.arange(40) % 4
    labels.flags.writeable = False
    deal(name, labels, 4, **RULES[name])


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80).map(np.array),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_stratified_split_keeps_the_proportions(labels, share, seed):
    train, test = partition.stratified_split(labels, share, stream(seed, "split"))
    assert np.sort(np.concatenate([train, test])).tolist() == list(range(len(labels)))
    for label in np.unique(labels):
        size, tested = (labels == label).sum(), (labels[test] == label).sum()
        if size == 1:
            assert tested == 0
        else:
            assert 1 <= tested <= size - 1
            assert abs(tested - share * size) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_stratified_split_refuses_a_share(share):
    with pytest.raises(BadValue, match="test_share"):
        partition.stratified_split(np.arange(4), share, stream(0, "split"))


@pytest.mark.parametrize("seed", range(40))
def test_topping_up_takes_from_whoever_holds_most_each_time(seed):
    draw = np.random.default_rng(seed)
    clients, minimum = int(draw.integers(1, 30)), int(draw.integers(1, 6))
    owner = draw.integers(0, draw.integers(1, clients + 1), clients * minimum + int(draw.integers(0, 60)))
    expected, rng = owner.copy(), np.random.default_rng(seed)
    for client in range(clients):  # word by word, looking at everything again for every sample
        while (expected == client).sum() < minimum:
            giver = np.bincount(expected, minlength=clients).argmax()
            expected[rng.choice(np.flatnonzero(expected == giver))] = client
    found = partition.top_up(owner, clients, minimum, np.random.default_rng(seed))
    assert found.tolist() == expected.tolist()
    assert np.bincount(found, minlength=clients).min() >= minimum


GROUPS = np.array([0, 1, 1, 2, 2, 2, 3, 3, 4])


def test_natural_groups_are_merged_whole():
    dealt = partition.natural(np.zeros(9), 2, fewer="merge", groups=GROUPS, rng=np.random.default_rng(3))
    assert sorted(np.concatenate(dealt).tolist()) == list(range(9))
    held = [sorted(set(GROUPS[own].tolist())) for own in dealt]
    assert sorted(map(len, held)) == [2, 3]
    assert not set(held[0]) & set(held[1])


def test_natural_groups_are_chosen_and_the_others_belong_to_nobody():
    dealt = partition.natural(np.zeros(9), 2, fewer="largest", groups=GROUPS)
    assert [own.tolist() for own in dealt] == [[1, 2], [3, 4, 5]]  # group 2 has three; of 1 and 3, the first
    assert isinstance(dealt, partition.Some)
    dealt = partition.natural(np.zeros(9), 3, fewer="choose", groups=GROUPS, rng=np.random.default_rng(0))
    assert len({int(GROUPS[own[0]]) for own in dealt}) == 3
    assert all((GROUPS[own] == GROUPS[own[0]]).all() for own in dealt)
    assert sum(map(len, dealt)) == sum((GROUPS[own[0]] == GROUPS).sum() for own in dealt)


def test_more_clients_than_groups_are_never_natural():
    for fewer in ("merge", "choose", "largest"):
        with pytest.raises(
            BadValue, match="has 5 natural clients, which cannot be 6; set the number of clients to 5"
        ):
            partition.natural(np.zeros(9), 6, fewer=fewer, groups=GROUPS)
