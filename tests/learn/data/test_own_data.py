"""Data that a user brings: arrays, tables, folders of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data.samples import Samples, dataset, located, pictures


def make(name, **given):
    return parts.call(
        parts.find("datasets", name), given, {"seed": 0, "root": None, "clients": 2, "beside": None}
    )


def refusal(name, **given):
    with pytest.raises(BadValue) as caught:
        make(name, **given)
    return caught.value


@pytest.fixture
def npz(tmp_path):
    def write(**held):
        path = tmp_path / "held.npz"
        np.savez(path, **held)
        return str(path)

    return write


EIGHT = np.arange(16.0).reshape(8, 2)
HALVES = np.array([0, 1] * 4)


def test_arrays_with_a_test_of_their_own_are_taken_as_they_are(npz):
    path = npz(x=EIGHT, y=HALVES, x_test=EIGHT[:3] + 100, y_test=[1, 0, 1], groups=["b", "a"] * 4)
    data = make("arrays", path=path)
    assert torch.equal(data.x, torch.from_numpy(EIGHT))
    assert data.x.dtype == torch.float64
    assert data.x_test.tolist() == [[100, 101], [102, 103], [104, 105]]
    assert data.y.tolist() == HALVES.tolist()
    assert data.y_test.tolist() == [1, 0, 1]
    assert data.groups.tolist() == [1, 0] * 4
    assert (data.name, data.classes, data.loss, data.note) == ("held", 2, "cross_entropy", "")


def test_a_test_is_split_off_each_class(npz):
    data = make("arrays", path=npz(x=EIGHT, y=HALVES), test_share=0.25)
    assert (data.y.bincount().tolist(), data.y_test.bincount().tolist()) == ([3, 3], [1, 1])
    both = torch.cat([data.x, data.x_test]).sort(0).values
    assert torch.equal(both, torch.from_numpy(EIGHT))


def test_a_group_whose_only_sample_is_in_the_test_is_no_group_any_more(npz):
    data = make("arrays", path=npz(x=EIGHT, y=HALVES, groups=np.arange(8)), test_share=0.25)
    assert data.groups.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float16])
def test_other_numbers_become_float32(npz, dtype):
    data = make("arrays", path=npz(x=np.ones((4, 2), dtype), y=[0, 1, 0, 1]), test_share=0.5)
    assert (data.x.dtype, data.x.sum().item()) == (torch.float32, 4)


def test_bytes_of_pixels_are_divided_by_what_is_said(npz):
    data = make("arrays", path=npz(x=np.full((4, 2), 51, np.uint8), y=[0, 1, 0, 1]), scale=255)
    assert data.x.unique().tolist() == [np.float32(51) / np.float32(255)]


def test_tokens_stay_whole(npz):
    data = make("arrays", path=npz(x=np.full((4, 3), 7, np.int32), y=[0, 1, 0, 1]), inputs="tokens")
    assert (data.x.dtype, data.x.unique().tolist()) == (torch.int64, [7])


def test_floating_point_labels_are_targets(npz):
    data = make("arrays", path=npz(x=EIGHT, y=HALVES / 2), test_share=0.25)
    assert (data.classes, data.loss, data.y.dtype) == (0, "half_square", torch.float32)
    assert len(data.y) == 6


def test_labels_of_text_are_classes_in_their_order(npz):
    path = npz(x=EIGHT, y=["no", "yes"] * 4, x_test=EIGHT, y_test=["yes"] * 8)
    data = make("arrays", path=path)
    assert (data.classes, data.y.tolist(), set(data.y_test.tolist())) == (2, [0, 1] * 4, {1})


def test_a_label_that_nobody_has_is_told(npz):
    data = make("arrays", path=npz(x=EIGHT, y=HALVES + 1))
    assert (data.classes, data.note) == (3, "no sample has the label [0], of 0 to 2")
    assert make("arrays", path=npz(x=EIGHT, y=HALVES + 1), classes=3).note == ""


def test_a_folder_of_npy_files_is_mapped_and_not_read(tmp_path):
    for name, held in {
        "x": EIGHT.astype(np.float32),
        "y": HALVES,
        "x_test": EIGHT[:2].astype(np.float32),
    }.items():
        np.save(tmp_path / f"{name}.npy", held)
    np.save(tmp_path / "y_test.npy", HALVES[:2])
    data = make("arrays", path=str(tmp_path))
    before = data.x.clone()
    file = np.load(tmp_path / "x.npy", mmap_mode="r+")
    file[0, 0] = 77  # what is in the file is what is seen: it was never copied
    file.flush()
    assert data.x[0, 0] == 77
    assert torch.equal(data.x[1:], before[1:])


@pytest.mark.parametrize(
    ("held", "given", "words"),
    [
        ({"x": EIGHT}, {}, "y: y: there is no such array"),
        ({"x": EIGHT, "labels": HALVES}, {"y": "label"}, "did you mean labels?"),
        ({"x": EIGHT, "y": HALVES, "x_test": EIGHT}, {}, "holds x_test, and no y_test"),
        (
            {"x": EIGHT, "y": HALVES[:7]},
            {},
            "y: there must be one for each of the 8 samples, and there are 7",
        ),
        ({"x": EIGHT, "y": HALVES}, {"classes": 1}, "labels must be between 0 and 0"),
        ({"x": EIGHT, "y": HALVES - 1}, {}, "y: -1: labels must be between 0 and 1"),
        ({"x": EIGHT, "y": HALVES * 10**6}, {}, "y: 1000000: is the largest label, and only 2 different"),
        ({"x": EIGHT, "y": HALVES / 2}, {"classes": 2}, "floating-point numbers, which have no classes"),
        ({"x": EIGHT, "y": HALVES}, {"inputs": "tokens"}, "tokens are whole numbers, and x holds float64"),
        ({"x": EIGHT.astype(str), "y": HALVES}, {}, "inputs must be numbers, and these are text"),
        ({"x": EIGHT + 1j, "y": HALVES}, {}, "array of numbers or text, not of type complex128"),
        ({"x": EIGHT, "y": HALVES}, {"test_share": 1.0}, "test_share: 1.0: must be between 0 and 1"),
        ({"x": EIGHT[:1], "y": HALVES[:1]}, {}, "there must be 2 samples to split a test off, not 1"),
        ({"x": EIGHT, "y": HALVES, "groups": HALVES[:3]}, {}, "groups: there must be one for each of the 8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(npz, held, given, words):
    assert words in str(refusal("arrays", path=npz(**held), **given))


def test_the_sample_with_nan_is_named(npz):
    x = EIGHT.copy()
    x[5, 1] = np.nan
    found = refusal("arrays", path=npz(x=x, y=HALVES, x_test=x, y_test=HALVES))
    assert str(found) == "x: inputs must be finite numbers, and sample 5 has NaN or infinity"


def test_labels_of_training_and_test_are_of_one_kind(npz):
    """Else 0 and 0.0 would be two classes."""
    x, whole, same = np.zeros((4, 2)), np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 1.0, 0.0])
    data = make("arrays", path=npz(x=x, y=whole, x_test=x, y_test=same))
    assert (data.classes, data.y.tolist(), data.y_test.tolist()) == (2, [0, 1, 0, 1], [0, 1, 1, 0])
    data = make("arrays", path=npz(x=x, y=same, x_test=x, y_test=whole))
    assert (data.loss, data.y.tolist(), data.y_test.tolist()) == ("half_square", [0, 1, 1, 0], [0, 1, 0, 1])


def test_a_class_that_the_test_alone_has_is_told(npz):
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    data = make("arrays", path=npz(x=x, y=y, x_test=x, y_test=np.array([0, 2, 1, 3])))
    assert data.note == "no training sample has the label [2, 3], and the test has"
    padded = make("arrays", path=npz(x=x, y=np.eye(4, dtype=int), x_test=x, y_test=np.full((4, 4), -100)))
    assert padded.note == ""


def test_a_group_is_a_number_or_text(npz):
    groups = np.array([1.0, np.nan, 2.0, np.nan])
    wrong = refusal("arrays", path=npz(x=np.zeros((4, 2)), y=np.array([0, 1, 0, 1]), groups=groups))
    assert str(wrong) == "groups: groups must be finite numbers, and sample 1 has NaN or infinity"


def test_a_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}]), y=[0, 1])
    assert "cannot be read (Object arrays cannot be loaded" in str(
        refusal("arrays", path=str(tmp_path / "a.npz"))
    )


def test_a_file_of_another_format_is_told(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "is not an .npz file" in str(refusal("arrays", path=str(tmp_path / "rows.csv")))
    (tmp_path / "none").mkdir()
    assert "holds no .npy files" in str(refusal("arrays", path=str(tmp_path / "none")))


def test_a_path_counts_from_here_and_then_from_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "data" / "a").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    assert located("a", tmp_path / "data") == tmp_path / "data" / "a"
    (tmp_path / "here" / "a").write_text("")
    assert located("a", tmp_path / "data").resolve() == tmp_path / "here" / "a"


@pytest.fixture
def images(tmp_path):
    def write(*paths, size=(4, 3), shade=0):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (shade, 0, 255)).save(tmp_path / path)
        return str(tmp_path)

    return write


def test_images_by_class_with_their_test(images):
    images("train/a/1.png", "train/b/1.png", shade=51)
    path = images("test/b/1.png", "test/b/deep/2.png")
    data = make("folder", path=path)
    assert (data.x.shape, data.y.tolist(), data.y_test.tolist()) == ((2, 3, 3, 4), [0, 1], [1, 1])
    assert data.x[0, :, 0, 0].tolist() == [np.float32(51) / np.float32(255), 0, 1]


def test_images_are_brought_to_one_size_and_to_grey(images):
    images("a/1.png", "a/2.png")
    path = images("b/1.png", "b/2.png", size=(9, 9))
    data = make("folder", path=path, size=[2, 5], colour="grey", test_share=0.5)
    assert data.x.shape == (2, 1, 2, 5)
    # Pillow's grey of blue: 255 * 0.114, rounded.
    assert data.x.unique().tolist() == [np.float32(29) / np.float32(255)]


def test_folders_that_do_not_fit_are_refused(images, tmp_path):
    path = images("a/1.png")
    assert "holds ['a']" in str(refusal("folder", path=path))
    (tmp_path / "b").mkdir()
    assert "the folder b holds no images" in str(refusal("folder", path=path))
    images("b/1.png", size=(9, 9))
    found = str(refusal("folder", path=path))
    assert "all images must be of one size: 1.png has 9 x 9 pixels, 1.png 3 x 4; set size: [3, 4]" in found
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    assert "the image 1.png cannot be read" in str(refusal("folder", path=path))
    assert "must be one number, or two" in str(refusal("folder", path=path, size=[1, 2, 3]))
    (tmp_path / "file").write_text("")
    assert "is not a folder" in str(refusal("folder", path=str(tmp_path / "file")))


def test_a_class_that_only_the_test_has_is_refused(images):
    images("train/a/1.png", "train/b/1.png")
    path = images("test/c/1.png")
    assert "test has the class c, and train has not" in str(refusal("folder", path=path))


@given(
    counts=st.lists(st.integers(2, 9), min_size=2, max_size=5),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_every_sample_is_in_training_or_in_the_test(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = Samples(np.arange(len(labels), dtype=np.float32)[:, None], labels, labels)
    data = dataset("all", rows, None, test_share=share, seed=seed)
    both = torch.cat([data.x, data.x_test]).flatten().sort().values
    assert both.tolist() == list(range(len(labels)))
    assert set(data.y.tolist()) == set(data.y_test.tolist()) == set(range(len(counts)))


def test_pictures_have_their_channels_first():
    assert pictures(np.zeros((2, 5, 5, 3))).shape == (2, 3, 5, 5)
    assert pictures(np.zeros((2, 3, 5, 5))).shape == (2, 3, 5, 5)
    assert pictures(np.zeros((2, 1, 28, 28))).shape == (2, 1, 28, 28)
    assert pictures(np.full((1, 2, 2), 255, np.uint8)).tolist() == [[[[1, 1], [1, 1]]]]


def test_names_of_classes_order_the_labels():
    rows = Samples(np.zeros((4, 1), np.float32), np.array(["b", "a", "b", "a"]))
    made = dataset("named", rows, rows, names=["b", "a"], test_share=0.5, seed=0)
    assert made.y.tolist() == [0, 1, 0, 1]
    with pytest.raises(BadValue, match="y: b: is no class"):
        dataset("named", rows, rows, names=["a", "c"], test_share=0.5, seed=0)


WATCHED = """
import json, pathlib, sys, threading, time
import fedsim

def anonymous_bytes():
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])

most, over = [0], threading.Event()

def watch():
    while not over.wait(0.01):
        most[0] = max(most[0], anonymous_bytes())

path, out = sys.argv[1:]
given = {
    "data": {"name": "arrays", "path": path, "x": ["x", "words"], "inputs": "tokens", "clients": 50},
    "model": {"name": "beside:Two"},
    "strategy": {
        "name": "strategies.server.fedavg:FedAvg",
        "participants": 2,
        "local": {"epochs": 1, "batch_size": 32},
    },
    "stop": {"rounds": 2},
    "record": {"report": False},
}
fedsim.check({**given, "model": "softmax", "data": {"name": "digits", "clients": 2}})
before = anonymous_bytes()
threading.Thread(target=watch, daemon=True).start()
result = fedsim.run(given, out=out)
over.set()
print(json.dumps({"more": most[0] - before, "rounds": result.summary["rounds"]}))
"""

TWO = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.last = nn.EmbeddingBag(9, 4), nn.Linear(500, 3)
        self.first = nn.Linear(4, 3)

    def forward(self, x, words):
        return self.last(x) + self.first(self.words(words))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
def test_mapped_data_stay_on_the_disk(tmp_path):
    """240 MB of inputs, of which two clients of 50 train at a time: 2 x 4.8 MB, and as much again while they do."""
    rows, folder = 40_000, tmp_path / "data"
    folder.mkdir()
    for name, count in (("", rows), ("_test", 400)):
        np.save(folder / f"x{name}.npy", np.ones((count, 500), np.float32))
        np.save(folder / f"words{name}.npy", np.arange(count * 500).reshape(count, 500) % 9)
        np.save(folder / f"y{name}.npy", np.arange(count) % 3)
    (tmp_path / "beside.py").write_text(TWO)
    (tmp_path / "watched.py").write_text(WATCHED)
    command = [sys.executable, "watched.py", str(folder), str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rounds"] == 2
    assert told["more"] < 0.4 * rows * 500 * 12
