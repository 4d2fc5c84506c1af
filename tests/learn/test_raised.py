"""Errors of other people's code in one line."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

from fedsim.learn.raised import passes, told


def in_numpy():
    np.linalg.inv(np.zeros((2, 2)))


def in_torch():
    torch.ones(2) @ torch.ones(3)


def in_python():
    json.loads("{")


def plain():
    raise LookupError


def ends():
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (in_numpy, "LinAlgError: Singular matrix"),
        (in_torch, "RuntimeError: "),
        (in_python, "JSONDecodeError: "),
        (plain, "LookupError"),
        (ends, "SystemExit: 0"),
    ],
)
def test_the_place_is_the_callers_own_line(call, words, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises((Exception, SystemExit)) as caught:
        call()
    line = inspect.getsourcelines(call)[1] + 1
    text = told(caught.value)
    assert text.startswith(words)
    assert text.endswith(f"(tests/learn/test_raised.py:{line})")


def test_long_messages_are_cut_and_have_one_line():
    text = told(ValueError("word " * 100 + "\nmore"))
    assert text.startswith("ValueError: word word")
    assert text.endswith("…")
    assert len(text) <= 160 + len("ValueError: ")


@pytest.mark.parametrize(("error", "through"), [(KeyboardInterrupt(), True), (SystemExit(0), False)])
def test_ctrl_c_passes(error, through):
    assert passes(error) is through
