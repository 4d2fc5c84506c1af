"""Random streams: named, independent, equal everywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsim.rng import key, stream

ROOT = Path(__file__).parents[1]
names = st.tuples(st.integers(0, 2**32), st.text(max_size=10), st.integers(-1, 10**6), st.integers(-1, 10**6))


def test_a_stream_has_fixed_numbers() -> None:
    # SHA-256 of "0|batches|3|1" begins with 16 bytes that make the Philox key
    import hashlib

    digest = hashlib.sha256(b"0|batches|3|1").digest()[:16]
    assert key(0, "batches", 3, 1) == int.from_bytes(digest, "little")
    again = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    assert np.array_equal(stream(0, "batches", 3, 1).random(5), again.random(5))


@given(names)
def test_equal_names_give_equal_numbers(name: tuple[int, str, int, int]) -> None:
    assert np.array_equal(stream(*name).integers(0, 2**62, 4), stream(*name).integers(0, 2**62, 4))


@given(names, names)
def test_different_names_give_different_keys(
    one: tuple[int, str, int, int], other: tuple[int, str, int, int]
) -> None:
    texts = ["|".join(map(str, name)) for name in (one, other)]
    assert (key(*one) == key(*other)) == (texts[0] == texts[1])


def test_drawing_from_one_stream_does_not_move_another() -> None:
    before = stream(1, "a").random(3)
    stream(1, "b").random(1000)
    assert np.array_equal(stream(1, "a").random(3), before)


def test_streams_of_neighbouring_nodes_are_uncorrelated() -> None:
    draws = np.stack([stream(0, "x", node).standard_normal(2000) for node in range(20)])
    correlation = np.corrcoef(draws) - np.eye(20)
    assert np.abs(correlation).max() < 0.12  # about five standard errors of 1/sqrt(2000)


GLOBAL = {"manual_seed", "seed", "shuffle", "permutation", "rand", "choice", "randint", "random"}


def test_library_code_draws_from_no_global_generator() -> None:
    allowed = {  # they seed foreign code, and restore
        "fedsim/flower/compat.py",
        "fedsim/learn/draws.py",
        "fedsim/learn/models/builtin.py",
    }
    wrong = []
    for folder in ("fedsim", "strategies", "topologies"):
        for file in (ROOT / folder).rglob("*.py"):
            if str(file.relative_to(ROOT)) in allowed:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in GLOBAL:
                    owner = ast.unparse(node.value)
                    if owner in ("random", "np.random", "numpy.random", "torch"):
                        wrong.append(f"{file.name}: {owner}.{node.attr}")
    assert not wrong
