"""The next character of what speakers say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.errors import BadValue
from fedsim.learn.data.dataset import PADDING
from fedsim.learn.data.plays import plays

PLAY = """A play, whose title belongs to nobody

Ann:
abc
abcd

Bob:
bad: no name, as it is not after an empty line

Ann:
dc
"""


def written(folder: Path, text: str = PLAY) -> str:
    (folder / "play.txt").write_text(text)
    return "play.txt"


def test_what_somebody_says_is_one_text_in_its_order(tmp_path: Path) -> None:
    """Ann says "abc\nabcd\ndc\n", 12 characters, of which a quarter, "dc\n", is the test."""
    data = plays(path=written(tmp_path), length=4, minimum=1, test_share=0.25, root=tmp_path, seed=0)
    letters = sorted(set("abc\nabcd\ndc\nbad: no name, as it is not after an empty line\n"))
    assert data.classes == len(letters) + 1

    def said(rows: np.ndarray) -> list[str]:
        return ["".join("·" if one in (0, PADDING) else letters[one - 1] for one in row) for row in rows]

    assert data.groups is not None
    own = data.groups == 0
    # "abc\nabcd\n" has 9 characters, so 8 pairs, in two pieces of 4.
    assert said(data.x.numpy()[own]) == ["abc\n", "abcd"]  # type: ignore[union-attr]
    assert said(data.y.numpy()[own]) == ["bc\na", "bcd\n"]
    assert said(data.x_test.numpy())[0] == "dc··"  # type: ignore[union-attr]
    assert said(data.y_test.numpy())[0] == "c\n··"
    assert said(data.x.numpy()[~own])[:2] == ["bad:", " no "]  # type: ignore[union-attr]
    assert (
        data.y_test.numpy()[0] == [letters.index("c") + 1, letters.index("\n") + 1, PADDING, PADDING]
    ).all()


def test_who_says_too_little_is_left_out_and_the_others_keep_their_order(tmp_path: Path) -> None:
    data = plays(path=written(tmp_path), length=4, minimum=3, test_share=0.25, root=tmp_path, seed=0)
    assert data.groups is not None
    assert set(data.groups.tolist()) == {0}  # Bob's, whose 47 characters leave 35 for training, 9 pieces
    assert len(data.x) == 9


@pytest.mark.parametrize(
    ("text", "more", "rule"),
    [
        ("no names at all\n", {}, "holds no speeches"),
        ("", {}, "holds no speeches"),
        (PLAY, {"minimum": 100}, "nobody in play.txt says 100 pieces of 80 characters"),
        (PLAY, {"test_share": 1.0}, "must be between 0 and 1, both excluded"),
    ],
)
def test_what_is_no_play_is_refused(tmp_path: Path, text: str, more: dict[str, float], rule: str) -> None:
    with pytest.raises(BadValue, match=rule):
        plays(path=written(tmp_path, text), root=tmp_path, seed=0, **more)  # type: ignore[arg-type]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_bytes(b"Ann:\n\xff\xfe\n")
    with pytest.raises(BadValue, match="cannot be read"):
        plays(path="play.txt", root=tmp_path, seed=0)


@pytest.mark.slow
def test_networks_learn_what_is_said(tmp_path: Path) -> None:
    """Where speakers say one word again and again, the next character is known, but for the first ones of a piece."""
    text = "".join(
        f"{name}:\n" + f"{word}\n" * 60 + "\n" for name, word in (("Ann", "abcd"), ("Bob", "abcd"))
    )
    written(tmp_path, text)
    experiment: dict[str, Any] = {
        "data": {
            "name": "plays",
            "path": "play.txt",
            "clients": 2,
            "length": 20,
            "root": str(tmp_path),
            "partition": "natural",
        },
        "model": {"name": "gru", "hidden": 16},
        "strategy": {
            "name": "fedavg",
            "fraction_evaluate": 0.0,
            "local": {"epochs": 4, "batch_size": 4, "lr": 1.0},
        },
        "stop": {"rounds": 12},
        "record": {"report": False},
    }
    experiment["data"]["partition"] = "natural"
    assert fedsim.run(experiment, out=tmp_path).summary["accuracy"] > 0.9


def test_shakespeare_as_it_is_handed_around() -> None:
    """Counted with other means: 299 names in "tiny Shakespeare", whose letters are 65."""
    root = Path(os.environ.get("FEDSIM_DATA", "../shared/data"))
    if not (root / "shakespeare" / "input.txt").is_file():
        pytest.skip("Shakespeare's plays are not in the data folder")
    data = plays(root=root, minimum=1, seed=0)
    assert data.classes == 66
    assert data.shape == (80,)
    pairs = int((data.y != PADDING).sum() + (data.y_test != PADDING).sum())
    assert 0.9e6 < pairs < 1.1e6
