"""LEAF's files: JSON with users, and what each of them has.

A file has ``users`` and ``user_data``; ``num_samples`` is not read, because in Reddit's files it is not the number of
samples that are there. References: Caldas et al., LEAF: a benchmark for federated settings, 2018.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import MISSING, BadValue, clip
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.folder import pixels_of
from fedsim.learn.data.samples import Samples, damaged, dataset, located
from fedsim.learn.data.text import next_ones, numbered, padded, pieces
from fedsim.machine import require_room
from fedsim.parts import Count

Array = NDArray[Any]

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's list of letters in Shakespeare."""

WORD = re.compile(r"[\w']+|[.,!?;]")
"""What LEAF takes for a word of a tweet."""

Which = Literal["femnist", "shakespeare", "sent140", "reddit", "synthetic", "celeba"]


def leaf(
    *,
    path: str,
    of: Which,
    vocabulary: Count = 10_000,
    length: Count | None = None,
    images: str | None = None,
    size: Count = 84,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return what LEAF's scripts write: the samples of its users, one group for each user with training samples.

    femnist: images [1, 28, 28], 62 classes. synthetic: vectors. shakespeare: the indices of 80 characters in LEAF's
    list of 80, and the next one. sent140: the words of a tweet, in 2 classes. reddit: pieces of 10 words and, for each
    word, the next one; both the comments as they are (``reddit_json``) and as they are cut (``reddit_leaf``) are read.
    celeba: faces [3, size, size] between 0 and 1, whose names the files hold, in 2 classes: whether they smile.

    Words are numbered by how often the training samples have them: 0 is padding, 1 is every other word.

    Args:
        path: a folder with ``train`` and ``test``, each of which holds .json files; or such a folder itself or one
            file, of which a test is split off.
        of: which of LEAF's datasets it is.
        vocabulary: how many words there are, padding and the unknown word included; for sent140 and reddit.
        length: how many words of a tweet or of a piece are read: null is LEAF's own, 25 for sent140, 10 for reddit.
        images: the folder of CelebA's pictures (``img_align_celeba``), from the current folder or from ``data.root``.
        size: how many pixels high and wide CelebA's pictures are made; LEAF has 84.
        test_share: the part that becomes the test, where there is no folder ``test``.
        seed: which samples those are.
        root: the data folder.

    Raises:
        BadValue: if there are no such files, or they hold something else.

    >>> import tempfile
    >>> users = {"a": {"x": [[0.0] * 784] * 2, "y": [3, 61]}, "b": {"x": [[1.0] * 784] * 2, "y": [0, 1]}}
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     json.dump({"users": ["a", "b"], "num_samples": [2, 2], "user_data": users}, file)
    ...     file.flush()
    ...     made = leaf(path=file.name, of="femnist", test_share=0.25, seed=0)
    >>> made.shape, made.classes, len(made.x)
    ((1, 28, 28), 62, 3)
    """
    place = located(path, root, get=f"LEAF's data/{of}/preprocess.sh makes one")
    both = [place / name for name in ("train", "test")]
    files = both if all(one.is_dir() for one in both) else [place]
    rows = [_rows(path, one) for one in files]
    try:
        if of in ("femnist", "synthetic"):
            parts, classes = [_vectors(one, of == "femnist") for one in rows], 62 if of == "femnist" else None
        elif of == "shakespeare":
            parts, classes = [_letters(one) for one in rows], len(LETTERS)
        elif of == "celeba":
            parts, classes = _faces(rows, images, size, root), 2
        elif of == "sent140":
            parts, classes = _tweets(rows, vocabulary, length or 25), 2
        else:
            parts, classes = _comments(rows, vocabulary, length or 10), vocabulary
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, BadValue):
            raise
        rule = f"does not hold what LEAF's {of} has ({clip(f'{type(error).__name__}: {error}')})"
        raise BadValue("path", path, rule) from error
    test = parts[1] if parts[1:] else None
    return dataset(f"leaf-{of}", parts[0], test, classes=classes, test_share=test_share, seed=seed)


class _Rows(NamedTuple):
    """Samples as LEAF's files hold them, of all users one after the other."""

    users: list[str]
    x: list[Any]
    y: list[Any]


def _rows(path: str, place: Path) -> _Rows:
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files:
        raise BadValue("path", path, f"the folder {place.name} holds no .json files")
    require_room("path", path, 8.0 * sum(file.stat().st_size for file in files), "its JSON")
    found = _Rows([], [], [])
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
            for user in data["users"]:
                own = data["user_data"][user]
                if len(own["x"]) != len(own["y"]):
                    raise BadValue("path", path, f"user {user} has {len(own['x'])} x and {len(own['y'])} y")
                found.users.extend([str(user)] * len(own["x"]))
                found.x.extend(own["x"])
                found.y.extend(own["y"])
        except BadValue:
            raise
        except (TypeError, LookupError) as error:
            hint = "LEAF's files have the keys users and user_data"
            raise BadValue(
                "path", path, f"{file.name} is not one of LEAF's files ({error!r})", hint
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise damaged("path", path, error) from error
    if not found.x:
        raise BadValue("path", path, "its users have no samples")
    return found


def _vectors(rows: _Rows, image: bool) -> Samples:
    x = np.array(rows.x, np.float32)
    return Samples(x.reshape(-1, 1, 28, 28) if image else x, _whole(rows.y), np.array(rows.users))


def _whole(labels: list[Any]) -> Array:
    """Return labels, which LEAF's scripts write as whole numbers, some as 1.0."""
    made = np.array(labels, np.float64)
    wrong = made[made != np.rint(made)]
    if len(wrong):
        raise BadValue("y", float(wrong[0]), "labels must be whole numbers")
    return made.astype(np.int64)


def _faces(parts: list[_Rows], images: str | None, size: int, root: Path | None) -> list[Samples]:
    """Return the pictures that the files name."""
    if images is None:
        hint = "set images to the folder img_align_celeba, which holds them"
        raise BadValue("images", MISSING, "LEAF's celeba has the names of pictures alone", hint)
    folder = located(images, root, "images")
    made = []
    for rows in parts:
        files = [folder / str(name) for name in rows.x]
        gone = next((file.name for file in files if not file.is_file()), None)
        if gone is not None:
            raise BadValue("images", images, f"there is no picture {gone}, which LEAF's files name")
        x = pixels_of(images, files, (size, size), "rgb")
        made.append(Samples(x, _whole(rows.y), np.array(rows.users)))
    return made


def _letters(rows: _Rows) -> Samples:
    """Return each letter's place in the list; LEAF itself gives -1 for one that is not in it."""
    place = {letter: index for index, letter in enumerate(LETTERS)}
    x = np.array([[place[letter] for letter in text] for text in rows.x], np.int64)
    return Samples(x, np.array([place[letter] for letter in rows.y], np.int64), np.array(rows.users))


def _tweets(parts: list[_Rows], vocabulary: int, length: int) -> list[Samples]:
    """Return words by number; a tweet is the fifth of its columns, after id, date, query and user."""
    texts = [[WORD.findall(columns[4]) for columns in rows.x] for rows in parts]
    numbers = numbered(texts[0], vocabulary)
    return [
        Samples(padded(own, numbers, length), _whole(rows.y), np.array(rows.users))
        for rows, own in zip(parts, texts, strict=True)
    ]


def _comments(parts: list[_Rows], vocabulary: int, length: int) -> list[Samples]:
    """Return pieces of comments, and the next word for each word; what follows the last one is no target."""
    comments = [[_words(x) for x in rows.x] for rows in parts]
    numbers = numbered(comments[0], vocabulary)
    made = []
    for rows, own in zip(parts, comments, strict=True):
        cut = [pieces(one, length) for one in own]
        users = [user for user, one in zip(rows.users, cut, strict=True) for _ in one]
        x, y = next_ones([piece for one in cut for piece in one], numbers, length)
        made.append(Samples(x, y, np.array(users)))
    return made


def _words(comment: Any) -> list[str]:
    """Return the words of a comment with its two ends, as it is or as LEAF has cut it into pieces."""
    if isinstance(comment, str):
        return ["<BOS>", *comment.split(), "<EOS>"]
    return [word for piece in comment for word in piece if word != "<PAD>"]
