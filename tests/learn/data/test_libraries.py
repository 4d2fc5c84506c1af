"""Datasets of libraries: Hugging Face's and torchvision's, made small on the disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data.samples import library
from tests.learn.data.test_client_files import make, refusal


def installed(module):
    try:
        return library(module)
    except BadValue as error:
        pytest.skip(str(error))


def test_a_dataset_of_hugging_face_from_a_folder(tmp_path):
    hub = installed("datasets")
    rows = {"a": [1.0, 2.0, 3.0, 4.0], "v": [[0, 1], [2, 3], [4, 5], [6, 7]], "who": ["x", "y", "x", "y"]}
    kind = hub.Features(
        {"a": hub.Value("float32"), "v": hub.List(hub.Value("int64")), "who": hub.Value("string")}
        | {"label": hub.ClassLabel(names=["cat", "dog", "owl"])}
    )
    both = hub.Dataset.from_dict(rows | {"label": [0, 1, 1, 0]}, features=kind)
    hub.DatasetDict({"train": both, "test": both.select([0, 1])}).save_to_disk(tmp_path / "saved")
    data = make("huggingface", path=str(tmp_path / "saved"), x=["v", "a"], y="label", group="who")
    assert data.x.tolist() == [[0, 1, 1], [2, 3, 2], [4, 5, 3], [6, 7, 4]]
    assert (data.y.tolist(), data.y_test.tolist(), data.classes) == ([0, 1, 1, 0], [0, 1], 3)
    assert data.groups.tolist() == [0, 1, 0, 1]
    path = str(tmp_path / "saved")
    assert "x: w: there is no such column" in str(refusal("huggingface", path=path, x="w", y="label"))
    assert "x: who: must be numbers or an image" in str(refusal("huggingface", path=path, x="who", y="label"))
    assert "train: training: there is no such split; did you mean train?" in str(
        refusal("huggingface", path=path, x="a", y="label", train="training")
    )
    (tmp_path / "empty").mkdir()
    found = refusal("huggingface", path=str(tmp_path / "empty"), x="a", y="label")
    assert "is not a folder that save_to_disk has written" in str(found)


def test_tokens_of_hugging_face_stay_whole(tmp_path):
    hub = installed("datasets")
    rows = {"input_ids": [[5, 9], [7, 0], [8, 1], [3, 0]], "attention_mask": [[1, 1], [1, 0], [1, 1], [1, 0]]}
    rows |= {"next": [[9, -100], [-100, -100], [1, 2], [2, -100]], "share": [0.5, 1.0, 1.5, 2.0]}
    rows |= {"uneven": [[1], [1, 2], [3], [4]], "label": [0, 1, 1, 0]}
    both = hub.Dataset.from_dict(rows)
    hub.DatasetDict({"train": both, "test": both.select([1])}).save_to_disk(tmp_path / "saved")
    given = {"path": str(tmp_path / "saved"), "y": "label", "inputs": "tokens"}
    data = make("huggingface", x="input_ids", **given)
    assert (data.x.dtype, data.x.tolist()) == (torch.int64, rows["input_ids"])
    data = make("huggingface", **{**given, "x": {"words": "input_ids", "share": "share"}, "y": "next"})
    assert data.shape == {"words": (2,), "share": (1,)}
    assert [part.dtype for part in data.x.parts] == [torch.int64, torch.float64]
    assert (data.y.tolist(), data.y_test.tolist(), data.classes) == (rows["next"], [[-100, -100]], 10)
    wrong = refusal("huggingface", x=["input_ids", "share"], **given)
    assert str(wrong) == "inputs: tokens: tokens are whole numbers, and ['input_ids', 'share'] has others"
    assert "y: uneven: must be a column" in str(
        refusal("huggingface", x="input_ids", **{**given, "y": "uneven"})
    )
    assert "one is (1,), another (2,)" in str(refusal("huggingface", x="uneven", **given))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": [None, 1.0, 1.0, 1.0]}, "x: a: sample 0 has no value; fill it in, or leave the sample out"),
        ({"a": [1, 2, None, 3]}, "x: a: sample 2 has no value"),
        ({"a": [[1.0, 2.0], [3.0, None], [5.0, 6.0], [7.0, 8.0]]}, "x: a: sample 1 has no value"),
        ({"who": ["u", None, "v", "v"]}, "group: who: sample 1 has no value"),
        ({"label": [0, 1, None, 1]}, "y: label: must be a column of numbers or text without gaps"),
    ],
)
def test_what_is_missing_in_hugging_faces_columns_is_named(tmp_path, changes, words):
    rows = {"a": [1.0, 2.0, 3.0, 4.0], "label": [0, 1, 0, 1], "who": ["u", "u", "v", "v"]}
    installed("datasets").Dataset.from_dict(rows | changes).save_to_disk(tmp_path / "one")
    given = {"path": str(tmp_path / "one"), "x": "a", "y": "label", "group": "who"}
    assert words in str(refusal("huggingface", **given))


def test_both_splits_of_hugging_face_have_the_columns(tmp_path):
    hub = installed("datasets")
    both = hub.Dataset.from_dict({"a": [1.0, 2.0], "label": [0, 1]})
    hub.DatasetDict({"train": both, "test": both.remove_columns("label")}).save_to_disk(tmp_path / "two")
    wrong = refusal("huggingface", path=str(tmp_path / "two"), x="a", y="label")
    assert str(wrong).startswith("y: label: there is no such column in the split test; known: a")


def test_images_of_hugging_face(tmp_path):
    hub = installed("datasets")
    images = [np.full((3, 4, 3), shade, np.uint8) for shade in (0, 51, 102, 255)]
    kind = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    one = hub.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in images], "label": [0, 1, 0, 1]}, features=kind
    )
    one.save_to_disk(tmp_path / "one")
    data = make("huggingface", path=str(tmp_path / "one"), x="image", y="label", test_share=0.5)
    assert data.x.shape == (2, 3, 3, 4)
    both = torch.cat([data.x, data.x_test])[:, 0, 0, 0].sort().values
    assert torch.equal(both, torch.tensor([0, 51, 102, 255]) / 255)


def test_datasets_of_torchvision_with_and_without_a_test(tmp_path):
    installed("torchvision.datasets")

    def image(path, shade):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (shade, shade, shade)).save(tmp_path / path)

    for name in ("AnnualCrop", "Forest"):
        for number in range(2):
            image(f"eurosat/2750/{name}/{number}.jpg", 255)
    supplied = {"seed": 0, "root": tmp_path}
    part = parts.find("datasets", "torchvision")
    data = parts.call(part, {"of": "EuroSAT", "test_share": 0.5}, supplied)
    assert (data.x.shape, data.y.tolist()) == ((2, 3, 3, 4), [0, 1])
    for split, shade in (("train", 0), ("valid", 0), ("test", 255)):
        for name in ("negative", "positive"):
            image(f"rendered-sst2/{split}/{name}/1.png", shade)
    data = parts.call(part, {"of": "RenderedSST2"}, supplied)
    assert (data.x.unique().tolist(), data.x_test.unique().tolist()) == ([0], [1])
    assert "did you mean SVHN?" in str(refusal("torchvision", of="SVHM"))
    assert "where its files are must be said" in str(refusal("torchvision", of="SVHN"))
    with pytest.raises(BadValue, match=r"its files cannot be read .*download it once"):
        parts.call(part, {"of": "SVHN"}, supplied)
