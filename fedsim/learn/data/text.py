"""Texts as numbers: words by how often they are used, pieces of one length, and what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue
from fedsim.learn.data.dataset import PADDING

Array = NDArray[Any]


def numbered(texts: Iterable[Iterable[str]], vocabulary: int) -> dict[str, int]:
    """Number words from 2, the most frequent first, and those that are as frequent in the order of the alphabet.

    Raises:
        BadValue: if the vocabulary has no place for a word beside padding, 0, and the unknown word, 1.
    """
    if vocabulary < 3:
        raise BadValue("vocabulary", vocabulary, "must be at least 3: padding, the unknown word and one word")
    count = Counter(word for text in texts for word in text)
    known = sorted(count, key=lambda word: (-count[word], word))[: vocabulary - 2]
    return {word: number for number, word in enumerate(known, 2)}


def padded(
    texts: Sequence[Sequence[str]], numbers: Mapping[str, int], length: int, strange: int = 1
) -> Array:
    """Return texts as numbers [N, length], with 0 behind their end and ``strange`` for what has no number."""
    x = np.zeros((len(texts), length), np.int64)
    for row, text in zip(x, texts, strict=True):
        row[: len(text)] = [numbers.get(word, strange) for word in text[:length]]
    return x


def pieces(text: Sequence[str], length: int) -> list[Sequence[str]]:
    """Cut a text into pieces of one more than a length, which overlap by one: so every word has its next one.

    >>> pieces("abcdef", 3), pieces("abcd", 3), pieces("a", 3)
    (['abcd', 'def'], ['abcd'], [])
    """
    return [text[start : start + length + 1] for start in range(0, len(text) - 1, length)]


def next_ones(
    cut: Sequence[Sequence[str]], numbers: Mapping[str, int], length: int, strange: int = 1
) -> tuple[Array, Array]:
    """Return pieces as inputs [N, length], and the next word for each word; what follows the last one is no target.

    >>> x, y = next_ones(["abc"], {"a": 2, "b": 3}, 4)
    >>> x.tolist(), y.tolist()
    ([[2, 3, 1, 0]], [[3, 1, -100, -100]])
    """
    codes = padded(cut, numbers, length + 1, strange)
    # A piece of n + 1 words has n pairs.
    real = np.arange(1, length + 1) < np.array([[len(piece)] for piece in cut]).reshape(-1, 1)
    return codes[:, :-1], np.where(real, codes[:, 1:], PADDING)
