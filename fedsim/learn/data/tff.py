"""The HDF5 files of TensorFlow Federated's datasets: ``examples``, in it a group for each client, in it columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import MISSING, BadValue, clip, did_you_mean, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, damaged, dataset, library, located, pictures
from fedsim.learn.data.text import next_ones, numbered, pieces
from fedsim.machine import require_room
from fedsim.parts import Count

Array = NDArray[Any]
Text = Literal["characters", "words"]

LETTERS = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"  # in this order
"""TensorFlow Federated's list of characters in Shakespeare, numbered from 1."""

STRANGE, FIRST, LAST = len(LETTERS) + 1, len(LETTERS) + 2, len(LETTERS) + 3
"""The numbers of a character that is not in the list, and of the beginning and the end of a text."""

BOTH = {"characters": ("\x02", "\x03"), "words": ("<BOS>", "<EOS>")}
"""The beginning and the end of a text, beside what it consists of."""

LENGTH = {"characters": 80, "words": 20}


class Columns(NamedTuple):
    """A column of a file, of all clients one after the other.

    Args:
        clients: whose each row is [N].
        x: the inputs: numbers [N, *shape], or N texts.
        y: the labels [N], or None.
    """

    clients: Array
    x: Any
    y: Array | None


def tff(
    *,
    path: str,
    x: str,
    y: str | None = None,
    text: Text | None = None,
    length: Count | None = None,
    vocabulary: Count = 10_000,
    test_path: str | None = None,
    classes: Count | None = None,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return the samples of TensorFlow Federated's clients, one group for each; needs h5py.

    EMNIST (``fed_emnist_train.h5``) has the columns pixels and label, CIFAR-100 has image, label and coarse_label.
    Shakespeare has snippets, of characters; Stack Overflow has tokens and title, of words: what is predicted is the
    next one, for each of them. A text begins and ends with a sign of its own, and is cut into pieces.

    Args:
        path: the file with the training samples, from the current folder or from ``data.root``.
        x: the column of the inputs, numbers or text. With two dimensions or three, numbers are images, and their
            channels come first; bytes become numbers from 0 to 1.
        y: the column of the labels; null for text, whose labels are what comes next.
        text: what a text consists of: characters, 90 with padding and signs, numbered as TensorFlow Federated does; or
            words, numbered by how often the training samples have them: 0 is padding, 1 is every other word.
        length: how many of them are in a piece; null is 80 characters or 20 words.
        vocabulary: how many words there are, padding and the unknown word included.
        test_path: the file with the test; where it is null, a test is split off.
        classes: how many classes there are; null is one more than the largest label.
        test_share: the part of each class, or of a text's pieces, that becomes the test, where there is no second file.
        seed: which samples those are.
        root: the data folder.

    Raises:
        BadValue: if there is no such file or column, or it is no text where it has to be, or text where not.

    >>> tff(path="fed_emnist_train.h5", x="pixels", y="label", seed=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: path: fed_emnist_train.h5: there is no such file...
    """
    if text is None and y is None:
        hint = "or say what the text x consists of, and what comes next is predicted: text: characters or text: words"
        raise BadValue("y", MISSING, "is required for numbers: name the column of the labels", hint)
    for key, given in (("y", y), ("classes", classes)):
        if text is not None and given is not None:
            raise BadValue(key, given, "means nothing beside text, whose labels are what comes next")
    files = {"path": path} if test_path is None else {"path": path, "test_path": test_path}
    found = [_read(file, key, (x, y), text is not None, root) for key, file in files.items()]
    if text is None:
        parts = [_numbers(one) for one in found]
    else:
        parts, classes = _texts(found, text, length or LENGTH[text], vocabulary)
    train, test = parts[0], parts[1] if parts[1:] else None
    return dataset(Path(path).stem, train, test, classes=classes, test_share=test_share, seed=seed)


def _read(path: str, key: str, names: tuple[str, str | None], is_text: bool, root: Path | None) -> Columns:
    place = located(path, root, key, "TensorFlow Federated's archives, such as fed_emnist.tar.bz2, hold them")
    hdf5 = library("h5py")
    try:
        with hdf5.File(place, "r") as file:
            if "examples" not in file:
                raise BadValue(key, path, f"holds {few(list(file))}, and no group named examples")
            groups = file["examples"]
            clients = list(groups)
            if not clients:
                raise BadValue(key, path, "has no clients")
            first = groups[clients[0]]
            for name, column in zip(("x", "y"), names, strict=True):
                if column is not None:
                    _check_column(path, first, name, column, is_text)
            x = names[0]
            for name in filter(None, names):
                lacks = next((client for client in clients if name not in groups[client]), None)
                if lacks is not None:
                    raise BadValue(key, path, f"client {clip(lacks)} has no column {name}, and others have")
            for client in clients:
                _check_client(key, path, client, first, groups[client], [name for name in names if name])
            rows = [len(groups[client][x]) for client in clients]
            size = float(np.prod(first[x].shape[1:], dtype=float)) * sum(rows)
            # A character becomes two numbers of 8 bytes, and is held as text meanwhile.
            room = 24.0 * place.stat().st_size if is_text else 12.0 * size
            require_room(key, path, room, f"{sum(rows)} samples")
            held = [
                np.concatenate([groups[client][name][()] for client in clients]) for name in names if name
            ]
    except (OSError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise damaged(key, path, error) from error
    return Columns(np.repeat(clients, rows), held[0], held[1] if held[1:] else None)


def _check_client(
    key: str, path: str, client: str, first: Mapping[str, Any], own: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Refuse a client whose columns do not fit together, or are of another shape than those of the first one."""
    held = {name: own[name].shape for name in names}
    if (
        len({shape[0] for shape in held.values()}) > 1
    ):  # else all that follow would have their neighbours' labels
        counts = ", ".join(f"{shape[0]} in {name}" for name, shape in held.items())
        raise BadValue(key, path, f"client {clip(client)} has not as many rows in each column: {counts}")
    for name, shape in held.items():
        others = first[name].shape[1:]
        if shape[1:] != others:
            rule = f"client {clip(client)} has samples of shape {shape[1:]} in {name}, and others {others}"
            raise BadValue(key, path, rule)


def _check_column(path: str, first: Mapping[str, Any], name: str, column: str, is_text: bool) -> None:
    if column not in first:
        raise BadValue(name, column, f"there is no such column in {path}", did_you_mean(column, first))
    kind = first[column].dtype
    if is_text and kind.kind not in "OS":
        raise BadValue(
            name, column, f"must be a column of text, and holds numbers ({kind})", "leave text out"
        )
    if not is_text and kind.kind not in "iufb":
        rule = f"must be a column of numbers, and is text ({kind})"
        raise BadValue(name, column, rule, "to predict what comes next, say text: characters or text: words")


def _numbers(found: Columns) -> Samples:
    x = pictures(found.x) if found.x.ndim > 2 else found.x.astype(np.float32)
    assert found.y is not None  # it is required for numbers
    return Samples(x, found.y, found.clients)


def _texts(found: list[Columns], text: Text, length: int, vocabulary: int) -> tuple[list[Samples], int]:
    """Return pieces of texts and what comes next, and how many classes that are."""
    begin, end = BOTH[text]
    texts = [[[begin, *_split(one, text), end] for one in part.x.tolist()] for part in found]
    if text == "characters":
        numbers = {letter: number for number, letter in enumerate(LETTERS, 1)} | {begin: FIRST, end: LAST}
        strange, count = STRANGE, LAST + 1
    else:
        numbers, strange, count = numbered(texts[0], vocabulary), 1, vocabulary
    made = []
    for part, own in zip(found, texts, strict=True):
        cut = [pieces(one, length) for one in own]
        x, y = next_ones([piece for one in cut for piece in one], numbers, length, strange)
        made.append(Samples(x, y, np.repeat(part.clients, [len(one) for one in cut])))
    return made, count


def _split(given: bytes | str, text: Text) -> Sequence[str]:
    """Return what a text consists of; bytes that are no UTF-8 are characters that are in no list."""
    plain = given.decode("utf-8", errors="replace") if isinstance(given, bytes) else given
    return plain if text == "characters" else plain.split()
