"""Ratings: who gave which item how many points; every user is a natural client."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.partition import stratified_split
from fedsim.learn.data.samples import Samples, damaged, dataset, located
from fedsim.machine import require_room
from fedsim.parts import Count, NotNegative
from fedsim.rng import stream

Array = NDArray[Any]

MEAN, DEVIATION = 3.5, 0.4
"""The mean of made ratings, and the standard deviation of what users and items add to it."""

SEPARATORS = ("\t", "::", ",", ";")
"""Of MovieLens' u.data, of its ratings.dat, and of CSV."""


def ratings(
    *,
    path: str | None = None,
    items: Count = 100,
    each: Count = 40,
    factors: Count = 2,
    noise: NotNegative = 0.5,
    test_share: float = 0.2,
    clients: int,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return ratings of items by users, one group for each user: MovieLens' files, any CSV, or made ones.

    A made rating is 3.5 + a_u + b_i + p_u · q_i + e, where all are normal: a and b with a standard deviation of 0.4,
    the product of the two vectors with one of 0.8, and e with that of the noise. It is not cut to a scale, so no model
    has a smaller expected mean squared error than noise². A few items have most of the ratings, as in life: item i is
    drawn with a weight of 1 / √(i + 1). What a user likes does not depend on how many there are.

    Args:
        path: a file with a rating in each line: user, item and rating, divided by tabs (``u.data``), ``::``
            (``ratings.dat``), commas or semicolons. If the first line is no rating, it names the columns. None makes
            ratings.
        items: how many items there are to choose from; at least ``each``.
        each: how many items a user rates.
        factors: the length of p and q.
        noise: the standard deviation of e.
        test_share: the part of each user's ratings that becomes the test; a user with one rating keeps it.
        clients: how many users are made.
        seed: which ratings are made, and which the test keeps.
        root: the data folder.

    Returns:
        Pairs [N, 2] of user and item, each numbered from 0 in the order of their ids, and ratings [N].

    Raises:
        BadValue: if there is no such file, or it holds something else.

    References:
        Harper and Konstan, The MovieLens datasets: history and context, ACM TiiS 2015.

    >>> made = ratings(clients=5, items=30, each=10, seed=0)
    >>> made.shape, made.counts, np.bincount(made.groups).tolist(), len(made.x_test)
    ((2,), (5, 30), [8, 8, 8, 8, 8], 10)
    """
    if path is None:
        name, columns = "ratings", _made(clients, items, each, factors, noise, seed)
    else:
        name, columns = Path(path).stem, _read(path, located(path, root))
    numbered = [np.unique(ids, return_inverse=True) for ids in columns[:2]]
    pairs = np.stack([numbers for _, numbers in numbered], axis=1).astype(np.int64)
    counts = (len(numbered[0][0]), len(numbered[1][0]) if path is not None else items)
    if path is None:
        pairs[:, 1] = columns[1]
    points, who = columns[2].astype(np.float32), pairs[:, 0]
    kept, held = stratified_split(who, test_share, stream(seed, "split"))
    if not len(held):
        rule = "no user has two ratings, of which one could be held out as a test"
        raise BadValue("test_share", test_share, rule)
    train, test = (Samples(pairs[own], points[own], who[own]) for own in (kept, held))
    return replace(dataset(name, train, test, test_share=test_share, seed=seed), counts=counts)


def _made(users: int, items: int, each: int, factors: int, noise: float, seed: int) -> list[Array]:
    """Return users, items and ratings [N]."""
    if each > items:
        raise BadValue("each", each, f"must be at most {items}, the number of items")
    require_room("users", users, 8.0 * users * (items + 8 * each), f"{users * each} ratings")
    scale = (0.64 / factors) ** 0.25  # the product of two such vectors has a variance of 0.64
    rng = stream(seed, "ratings items")
    shift, taste = rng.normal(0, DEVIATION, items), rng.normal(0, scale, (items, factors))
    weights = 1 / np.sqrt(np.arange(1, items + 1))
    chosen, points = [], []
    for user in range(users):
        rng = stream(seed, "ratings user", user)
        own = rng.choice(items, each, replace=False, p=weights / weights.sum())
        likes = taste[own] @ rng.normal(0, scale, factors)
        points.append(MEAN + rng.normal(0, DEVIATION) + shift[own] + likes + rng.normal(0, 1, each) * noise)
        chosen.append(own)
    return [np.repeat(np.arange(users), each), np.concatenate(chosen), np.concatenate(points)]


def _read(path: str, file: Path) -> list[Array]:
    """Return users, items and ratings [N] of a file."""
    try:
        require_room("path", path, 60.0 * file.stat().st_size, "its ratings")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged("path", path, error) from error
    first = text.partition("\n")[0].strip()
    separator = next((one for one in SEPARATORS if len(first.split(one)) > 2), None)
    if separator is None:
        rule = "has no user, item and rating in its first line, divided by tabs, ::, commas or semicolons"
        raise BadValue("path", path, rule)
    head = [name.strip().lower() for name in first.split(separator)]
    named = not _is_number(head[2])
    columns = _columns(path, head) if named else (0, 1, 2)
    if named and not text.partition("\n")[2].strip():
        raise BadValue("path", path, "holds no ratings")
    text = text.replace("::", "\t") if separator == "::" else text
    try:
        rows = np.loadtxt(
            StringIO(text),
            delimiter="\t" if separator == "::" else separator,
            usecols=columns,
            skiprows=int(named),
            ndmin=2,
        )
    except ValueError as error:
        raise damaged("path", path, error) from error
    return list(rows.T)


def _columns(path: str, head: list[str]) -> tuple[int, ...]:
    """Return where a file with named columns has user, item and rating."""
    found = []
    for names in (("user",), ("item", "movie", "business", "product"), ("rating", "score", "stars")):
        place = next((index for index, one in enumerate(head) if one.startswith(names)), None)
        if place is None:
            rule = f"has no column whose name begins with {' or '.join(names)}; it has {few(head)}"
            raise BadValue("path", path, rule)
        found.append(place)
    return tuple(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
