"""Plays: the next character of what somebody says; every speaker is a natural client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue
from fedsim.learn.data.dataset import PADDING, Dataset
from fedsim.learn.data.samples import Samples, damaged, dataset, located
from fedsim.machine import require_room
from fedsim.parts import Count

Array = NDArray[Any]

NAME = re.compile(r"[^\s:][^:]*:")
"""A line that says who speaks next."""


def plays(
    *,
    path: str = "shakespeare/input.txt",
    length: Count = 80,
    minimum: Count = 2,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    r"""Return texts and the character that follows each of theirs, one group for each speaker of a play.

    A speech is a line with the speaker's name and a colon, and the lines after it up to an empty one. What somebody
    says in the whole file is one text, in its order; its last part is the test. It is cut into pieces of ``length``
    characters, of which each has the next one as its target; what a shorter piece lacks is padding.

    Args:
        path: the file, from the current folder or from the data folder.
        length: of a piece, in characters.
        minimum: how many pieces for training a speaker needs to be there.
        test_share: the last part of each text, by characters.
        seed: is not used: nothing is drawn.
        root: the data folder.

    Returns:
        Characters [N, length] and targets [N, length], whole numbers: 0 is padding, and the characters of the whole
        file follow in the order of their codes. There are as many classes, padding included.

    Raises:
        BadValue: if there is no such file, or nobody in it says enough.

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017, which
        cuts roles and lines likewise.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
    ...     print("Ann:\nabcab\n\nBob:\nbb\n\nAnn:\ncabca", file=file, flush=True)
    ...     made = plays(path=file.name, length=3, minimum=2, test_share=0.3, seed=0)
    >>> made.x.tolist(), made.y.tolist(), made.x_test.tolist()
    ([[2, 3, 4], [2, 3, 1], [4, 0, 0]], [[3, 4, 2], [3, 1, 4], [2, -100, -100]], [[3, 4, 2]])
    """
    if not 0 < test_share < 1:
        raise BadValue("test_share", test_share, "must be between 0 and 1, both excluded")
    texts = _texts(path, located(path, root))
    letters = sorted({letter for text in texts.values() for letter in text})
    code = {letter: number for number, letter in enumerate(letters, 1)}
    parts: tuple[list[Array], list[Array]] = ([], [])
    owners: list[int] = []
    for speaker, text in enumerate(texts.values()):
        numbers = np.array([code[letter] for letter in text], np.int64)
        cut = len(numbers) - round(test_share * len(numbers))
        kept, held = _pieces(numbers[:cut], length), _pieces(numbers[cut:], length)
        if len(kept) >= minimum:
            parts[0].append(kept)
            parts[1].append(held)
            owners += [speaker] * len(kept)
    if not owners or not sum(map(len, parts[1])):
        rule = f"nobody in {path} says {minimum} pieces of {length} characters and more for a test"
        raise BadValue("minimum", minimum, rule, "lower it, or length")
    rows = [np.concatenate(part) for part in parts]
    train, test = (Samples(part[:, 0], part[:, 1]) for part in rows)
    train = train._replace(groups=np.array(owners))
    classes = len(letters) + 1
    return dataset(Path(path).stem, train, test, classes=classes, test_share=test_share, seed=seed)


def _texts(path: str, file: Path) -> dict[str, str]:
    """Return what each speaker says, by name, in the order in which they first speak."""
    try:
        require_room("path", path, 40.0 * file.stat().st_size, "its text")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged("path", path, error) from error
    found: dict[str, list[str]] = {}
    speaker, begins = None, True
    for line in lines:
        if begins and NAME.fullmatch(line):
            speaker = line[:-1]
        elif line and speaker is not None:
            found.setdefault(speaker, []).append(line)
        begins = not line
    if not found:
        hint = "a speech begins with a line such as ROMEO: after an empty one"
        raise BadValue("path", path, "holds no speeches", hint)
    return {name: "\n".join(said) + "\n" for name, said in found.items()}


def _pieces(numbers: Array, length: int) -> Array:
    """Return inputs and targets [N, 2, length] of a text; what is left at its end is padded."""
    starts = np.arange(0, len(numbers) - 1, length)
    made = np.zeros((len(starts), 2, length), np.int64)
    made[:, 1] = PADDING
    for row, start in zip(made, starts, strict=True):
        wanted = numbers[start + 1 : start + length + 1]
        row[0, : len(wanted)], row[1, : len(wanted)] = numbers[start : start + len(wanted)], wanted
    return made
