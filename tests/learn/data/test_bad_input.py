"""Whatever is wrong with data, model or metric is one clear line before t = 0, with the key, the value and the rule."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.data.dataset import Dataset
from tests.learn.odd_models import points

HERE = "tests.learn.data.test_bad_input"
CSV = "age,size,kind,label\n1,2,a,no\n3,4,b,yes\n5,6,a,no\n7,8,b,yes\n"


def npz(**changes):
    """Return a file of ten samples of two classes, in two groups."""
    held = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10) % 2, "groups": np.arange(10) // 5}
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in (held | changes).items() if value is not None})
    return file.getvalue()


def gap(*, clients, seed):
    made = points(clients=clients, seed=seed)
    return Dataset(
        "gap", made.x, made.y, made.x_test, made.y_test, 3, groups=2 * (np.arange(len(made.y)) % 2)
    )


def broken(*, clients, seed):
    raise KeyError("colour")


class Wide(nn.Module):
    """Gives five numbers where three classes are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x):
        return self.layer(x)


class Two(nn.Module):
    """Gives two numbers for two."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


class Pair(Wide):
    """Gives two things."""

    def forward(self, x):
        return self.layer(x)[:, :3], x


def cube(outputs, y):
    return outputs.reshape(-1, 1000).mean()


def lost(outputs, y):
    return float("nan")


HOLED = np.where(np.arange(20).reshape(10, 2) == 7, np.nan, 1.0)
TABLE = {"name": "table", "path": "d.csv", "label": "label"}
ARRAYS = {"name": "arrays", "path": "d.npz"}
TOKENS = ARRAYS | {"inputs": "tokens"}
WORDS = np.where(np.arange(80).reshape(40, 2) == 41, 12, 3)
"""Forty texts of two words, of which one is another: in the middle, where no short trial would look."""
EVEN = {"x": np.full((40, 2), 3), "y": np.arange(40) % 2, "groups": None}
POINTS = {"name": "tests.learn.odd_models:points"}

CASES = {
    "labels outside the classes": (
        {"d.npz": npz(y=np.arange(10) % 4)},
        {"data": ARRAYS | {"classes": 2}},
        r"data\.y: 2: labels must be between 0 and 1, for 2 classes",
    ),
    "labels below 0": (
        {"d.npz": npz(y=-(np.arange(10) % 2))},
        {"data": ARRAYS},
        r"data\.y: -1: labels must be between 0 and",
    ),
    "NaN in inputs": (
        {"d.npz": npz(x=HOLED)},
        {"data": ARRAYS},
        r"data\.x: inputs must be finite numbers, and sample 3 has NaN or infinity",
    ),
    "what is infinite in the type of the weights": (
        {"d.npz": npz(x=np.where(np.arange(20).reshape(10, 2) == 13, 1e39, 1.0))},  # float32 ends at 3.4e38
        {"data": ARRAYS},
        r"data\.x(_test)?: inputs, in float32, must be finite numbers, and sample \d has NaN or infinity",
    ),
    "infinity in targets": (
        {"d.npz": npz(y=np.where(np.arange(10) == 3, np.inf, 1.0))},
        {"data": ARRAYS, "model": "linear"},
        r"data\.y: targets must be finite numbers, and sample 3 has NaN or infinity",
    ),
    "as many labels as samples": (
        {"d.npz": npz(y=np.arange(9) % 2)},
        {"data": ARRAYS},
        r"data\.y: there must be one for each of the 10 samples, and there are 9",
    ),
    "as many groups as samples": (
        {"d.npz": npz(groups=np.arange(3))},
        {"data": ARRAYS},
        r"data\.groups: there must be one for each of the 10 samples, and there are 3",
    ),
    "groups without samples": (
        {},
        {"data": {"name": f"{HERE}:gap"}},
        r"data\.groups: \[0, 2\]: must be numbered 0 to 1 without a gap",
    ),
    "more clients than groups": (
        {"d.npz": npz()},
        {"data": ARRAYS | {"clients": 3, "partition": "natural"}},
        r"data\.clients: 3: .*2 (natural )?(clients|groups)",
    ),
    "no groups at all": (
        {"d.npz": npz(groups=None)},
        {"data": ARRAYS | {"partition": "natural"}},
        r"data\.partition.*natural: this dataset does not say which client a sample belongs to",
    ),
    "a client without test data": (
        {"d.npz": npz()},
        {"data": ARRAYS | {"clients": 8, "client_test_share": 0.1}},
        r"data\.client_test_share: 0\.1: .*client \d",
    ),
    "an array that is not there": (
        {"d.npz": npz()},
        {"data": ARRAYS | {"y": "yy"}},
        r"data\.y: yy: there is no such array in d\.npz; did you mean y\?",
    ),
    "an unknown column": (
        {"d.csv": CSV.encode()},
        {"data": TABLE | {"label": "lable"}},
        r"data\.label: lable: .*did you mean label\?",
    ),
    "missing values": (
        {"d.csv": CSV.replace("5,6", "5,").encode()},
        {"data": TABLE},
        r"data\.\w+: .*(line|row) .*(missing|empty|no value)|size.*(missing|empty|no value)",
    ),
    "text among numbers": (
        {"d.csv": CSV.replace("5,6", "5,six").encode()},
        {"data": TABLE | {"types": {"size": "number"}}},
        r"data\.types: size: is not a column of numbers: ",
    ),
    "a CSV file called Parquet": (
        {"d.parquet": CSV.encode()},
        {"data": TABLE | {"path": "d.parquet"}},
        r"data\.path: d\.parquet: .*(cannot be read|is not)",
    ),
    "bytes called CSV": (
        {"d.csv": npz()},
        {"data": TABLE},
        r"data\.path: d\.csv: .*(cannot be read|is not|text)",
    ),
    "a picture called CSV": (
        {"d.csv": b"\x89PNG\r\n\x1a\n" + bytes(200)},
        {"data": TABLE},
        r"data\.path: d\.csv: cannot be read \(its first line is no text\)",
    ),
    "text called npz": (
        {"d.npz": CSV.encode()},
        {"data": ARRAYS},
        r"data\.path: d\.npz: is not an \.npz file",
    ),
    "a pickle called npz": (
        {"d.npz": pickle.dumps({"x": 1})},
        {"data": ARRAYS},
        r"data\.path: d\.npz: is not an \.npz file",
    ),
    "half a file": ({"d.npz": npz()[:300]}, {"data": ARRAYS}, r"data\.path: d\.npz: is not an \.npz file"),
    "no file": ({}, {"data": ARRAYS}, r"data\.path: d\.npz: there is no such file; nothing is downloaded"),
    "MNIST that is not downloaded": (
        {},
        {"data": {"name": "mnist", "root": "empty"}},
        r"data\.name: mnist: .*not found.*empty.*; set .* or get them: torchvision\.datasets\.MNIST\(root, download",
    ),
    "CIFAR-10 that is not downloaded": (
        {},
        {"data": {"name": "cifar10", "root": "empty"}},
        r"data\.name: cifar10: its files were not found.*get it: torchvision\.datasets\.CIFAR10\(root, download=True\)",
    ),
    "LEAF that is not downloaded": (
        {},
        {"data": {"name": "leaf", "path": "femnist", "of": "femnist"}},
        r"data\.path: femnist: there is no such file; .*LEAF's data/femnist/preprocess\.sh makes one",
    ),
    "TFF's files that are not downloaded": (
        {},
        {"data": {"name": "tff", "path": "fed.h5", "x": "pixels", "y": "label"}},
        r"data\.path: fed\.h5: there is no such file; .*fed_emnist\.tar\.bz2, hold them",
    ),
    "a dataset that fails": (
        {},
        {"data": {"name": f"{HERE}:broken"}},
        r"data\.name|data: .*KeyError: 'colour'",
    ),
    "outputs that do not fit the classes": (
        {},
        {"data": POINTS, "model": f"{HERE}:Wide"},
        r"gives outputs of shape \(1, 5\) for one sample of points, not \(1, 3\)",
    ),
    "outputs that are two things": (
        {},
        {"data": POINTS, "model": f"{HERE}:Pair"},
        r"gives outputs of shape \(\) for one sample of points, not \(1, 3\)",
    ),
    "a word that the model does not have": (
        {"d.npz": npz(x=WORDS, y=np.arange(40) % 2, groups=None)},
        {"data": TOKENS, "model": {"name": "lstm", "words": 12}},
        r"model(\.name)?: lstm: does not fit d \(samples of shape \(2,\), whole numbers from 3 to 12\): IndexError",
    ),
    "a word that the model does not have, in the test": (
        {"d.npz": npz(**(EVEN | {"x_test": WORDS, "y_test": np.arange(40) % 2}))},
        {"data": TOKENS, "model": {"name": "gru", "words": 12}},
        r"gru: does not fit d \(samples of shape \(2,\), whole numbers from 3 to 12\): IndexError",
    ),
    "a number below 0 that is a word": (
        {"d.npz": npz(x=WORDS - 4, y=np.arange(40) % 2, groups=None)},
        {"data": TOKENS, "model": {"name": "transformer", "words": 12, "width": 8}},
        r"transformer: does not fit d \(samples of shape \(2,\), whole numbers from -1 to 8\): IndexError",
    ),
    "a test of padding alone": (
        {"d.npz": npz(**(EVEN | {"y": WORDS, "x_test": WORDS, "y_test": np.full((40, 2), -100)}))},
        {"data": TOKENS, "model": "gru"},
        r"data\.y_test: there is nothing but padding, the label -100, and so nothing to learn or to measure",
    ),
    "labels that the loss takes for padding": (
        {"d.npz": npz(y=np.ones(10, int))},
        {"data": ARRAYS, "loss": {"name": "cross_entropy", "ignore_index": 1}},
        r"data\.y: there is nothing but padding, the label 1,",
    ),
    "targets that are no shares": (
        {"d.npz": npz(y=np.where(np.arange(20).reshape(10, 2) == 9, 3.0, 1.0))},
        {"data": ARRAYS, "model": f"{HERE}:Two", "loss": "bce"},
        r"data\.y: 3\.0: targets of the loss bce must be between 0 and 1",
    ),
    "a model for other inputs": (
        {},
        {"data": POINTS, "model": "lenet5"},
        r"model: lenet5: needs images \(channels, height, width\)",
    ),
    "a metric for numbers": (
        {},
        {"data": POINTS, "evaluate": {"metrics": ["mae"]}},
        r"evaluate\.metrics\.0: mae: does not fit points: .*one number for each target",
    ),
    "a metric that fails": (
        {},
        {"data": POINTS, "evaluate": {"metrics": [f"{HERE}:cube"]}},
        r"evaluate\.metrics\.0: cube: does not fit points: RuntimeError",
    ),
    "a metric that is no number": (
        {},
        {"data": POINTS, "evaluate": {"metrics": [f"{HERE}:lost"]}},
        r"evaluate\.metrics\.0: lost: does not fit points: it is nan for the model before any training",
    ),
    "an unknown metric": (
        {},
        {"data": POINTS, "evaluate": {"metrics": ["acuracy"]}},
        r"evaluate\.metrics\.0: acuracy: no such metric; did you mean accuracy\?",
    ),
    "an unknown parameter": (
        {"d.npz": npz()},
        {"data": ARRAYS | {"clases": 3}},
        r"data\.clases: unknown key.*did you mean classes\?",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_in_one_line_before_anything_runs(case, tmp_path, monkeypatch):
    files, changes, words = CASES[case]
    (tmp_path / "empty").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    data = {"clients": 2, **changes["data"]}
    given = {"model": "softmax", "strategy": "fedavg", "stop": {"rounds": 1}, **changes, "data": data}
    with pytest.raises(ConfigError, match=words) as caught:
        fedsim.run(given, out=tmp_path / "runs")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert not list((tmp_path / "runs").rglob("*.safetensors")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize("y", [torch.zeros(4), torch.zeros(4, dtype=torch.int32)])
def test_labels_of_another_type_are_refused(y):
    with pytest.raises(BadValue, match=r"^y: torch\.\w+: labels must be of type torch\.int64"):
        Dataset("odd", torch.zeros(4, 1), y, torch.zeros(4, 1), y, 2)
