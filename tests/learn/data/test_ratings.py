"""Ratings by users: files of three kinds, and made ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.ratings import ratings
from fedsim.learn.models.text import matrix_factorisation

# Users 7 and 30, items 5, 9 and 100: numbered 0 and 1, and 0, 1 and 2.
ROWS = [(30, 100, 4.0), (7, 5, 1.0), (7, 100, 3.5), (30, 9, 2.0), (30, 5, 5.0)]
KNOWN = {(1, 2, 4.0), (0, 0, 1.0), (0, 2, 3.5), (1, 1, 2.0), (1, 0, 5.0)}
FILES = {
    "u.data": "".join(f"{user}\t{item}\t{points}\t881250949\n" for user, item, points in ROWS),
    "ratings.dat": "".join(f"{user}::{item}::{points}::978300760\n" for user, item, points in ROWS),
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    + "".join(f"{u},{i},{p},964982703\n" for u, i, p in ROWS),
    "other.csv": "when;stars;item_id;user\n" + "".join(f"2020;{p};{i};{u}\n" for u, i, p in ROWS),
    "plain.csv": "".join(f"{u},{i},{p}\n" for u, i, p in ROWS),
}


def triples(data: Dataset) -> set[tuple[int, int, float]]:
    x = torch.cat([data.x, data.x_test])  # type: ignore[list-item]
    return {(int(u), int(i), float(p)) for (u, i), p in zip(x, torch.cat([data.y, data.y_test]), strict=True)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_it_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    data = ratings(path=name, root=tmp_path, clients=2, test_share=0.3, seed=0)
    assert triples(data) == KNOWN
    assert data.counts == (2, 3)
    # User 7 has two ratings, and keeps one; user 30 keeps two of three.
    assert data.groups is not None
    assert sorted(data.groups.tolist()) == [0, 1, 1]
    assert data.x[:, 0].tolist() == data.groups.tolist()  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1 2 3\n", "has no user, item and rating in its first line"),
        ("", "has no user, item and rating in its first line"),
        ("user,item,rating\n", "holds no ratings"),
        ("user,item,when\n1,2,3\n", "has no column whose name begins with rating or score or stars; it has"),
        ("1,2,3\n1,2,many\n", "cannot be read"),
        ("1,2,3\n4,5\n", "cannot be read"),
        ("1,1,nan\n1,2,3\n", "must be finite numbers"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "some.csv").write_text(text)
    with pytest.raises(BadValue, match=rule):
        ratings(path="some.csv", root=tmp_path, clients=2, seed=0)


def test_a_test_needs_a_user_with_two_ratings(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("1,1,3\n2,1,4\n")
    with pytest.raises(BadValue, match="no user has two ratings"):
        ratings(path="some.csv", root=tmp_path, clients=2, seed=0)


def test_what_a_user_likes_does_not_depend_on_how_many_there_are() -> None:
    few, many = (ratings(clients=clients, seed=5) for clients in (3, 6))
    own = [{one for one in triples(data) if one[0] < 3} for data in (few, many)]
    assert own[0] == own[1]
    assert len(own[0]) == 3 * 40


def test_made_ratings_have_the_moments_that_the_page_tells() -> None:
    """The noise comes last in a user's draws, so that ratings with and without it differ by nothing else."""
    clean, noisy = (ratings(clients=400, noise=noise, seed=1) for noise in (0.0, 0.5))
    noise = (torch.cat([noisy.y, noisy.y_test]) - torch.cat([clean.y, clean.y_test])).numpy()
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(16_000)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 16_000)
    # Items alone are few: the mean of their 100 shifts has a standard deviation of 0.04, weighted a little more.
    assert abs(clean.y.mean() - 3.5) < 0.25


def test_without_noise_ratings_have_low_rank() -> None:
    """Each user's ratings less its own mean and the items' shifts are p · q: all users' together have rank 2."""
    data = ratings(clients=30, items=12, each=12, noise=0.0, test_share=0.1, seed=3)
    table = np.full((30, 12), np.nan)
    for user, item, points in triples(data):
        table[user, item] = points
    assert np.isfinite(table).all()
    centred = table - table.mean(1, keepdims=True)
    centred -= centred.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    assert values[1] > 0.1
    assert values[2] < 1e-5


def test_items_are_rated_the_more_the_smaller_their_number() -> None:
    data = ratings(clients=300, items=60, each=10, seed=0)
    count = torch.cat([data.x, data.x_test])[:, 1].bincount(minlength=60)  # type: ignore[list-item]
    assert count[:10].sum() > 2 * count[-10:].sum()


def test_no_more_items_are_rated_than_there_are() -> None:
    with pytest.raises(BadValue, match="each: 11: must be at most 10, the number of items"):
        ratings(clients=2, items=10, each=11, seed=0)


EXPERIMENT = {
    "data": {"name": "ratings", "clients": 12, "items": 20, "each": 15, "partition": "natural"},
    "model": {"name": "matrix_factorisation", "factors": 2},
    "strategy": {
        "name": "fedavg",
        "fraction_evaluate": 0.0,
        "local": {"epochs": 2, "batch_size": 4, "lr": 0.2},
    },
    "stop": {"rounds": 15},
    "record": {"report": False},
}


def test_the_model_learns_how_many_users_and_items_there_are(tmp_path: Path) -> None:
    result = fedsim.run(EXPERIMENT, out=tmp_path)
    shapes = {name: weight.shape for name, weight in result.weights().items()}
    assert shapes["users.weight"] == (12, 2)
    assert shapes["items.weight"] == (20, 2)
    loss = result.metrics()["loss"]
    # At first the model says 0, so the loss is half the mean square of 3.5 and more; the mean alone makes it 1 or less.
    assert loss[0] > 6
    assert loss[-1] < 1.1


def test_a_model_of_pairs_needs_their_counts() -> None:
    with pytest.raises(BadValue, match="items: must be given, as the data do not say how many there are"):
        matrix_factorisation(shape=(2,), users=3)
    with pytest.raises(ConfigError, match=r"needs pairs of user and item, not samples of shape \(1, 8, 8\)"):
        fedsim.check({**EXPERIMENT, "data": {"name": "digits", "clients": 3}})
