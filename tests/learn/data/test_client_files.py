"""Files that say whose their samples are, LEAF's and TensorFlow Federated's; and other libraries' datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data.dataset import PADDING
from fedsim.learn.data.leaf import LETTERS
from fedsim.learn.data.samples import library
from fedsim.learn.data.tff import LETTERS as TFF


def make(name, **given):
    supplied = {"seed": 0, "root": None, "clients": 2, "beside": None}
    return parts.call(parts.find("datasets", name), given, supplied)


def refusal(name, **given):
    with pytest.raises(BadValue) as caught:
        make(name, **given)
    return caught.value


@pytest.fixture
def leaf(tmp_path):
    """Write users and their x and y, as LEAF does: in a folder for training, and in one for the test."""

    def write(train, test=None):
        for part, users in (("train", train), ("test", test)):
            if users is None:
                continue
            (tmp_path / part).mkdir(exist_ok=True)
            names, count = list(users), [99] * len(users)  # as for Reddit, the number of another split
            data = {user: {"x": x, "y": y} for user, (x, y) in users.items()}
            text = json.dumps({"users": names, "num_samples": count, "user_data": data})
            (tmp_path / part / "all_0.json").write_text(text, encoding="utf-8")
        return str(tmp_path if test is not None else tmp_path / "train")

    return write


def test_femnist_has_a_group_for_each_writer(leaf):
    pixels = [[i / 4] * 784 for i in range(5)]
    path = leaf({"f1": (pixels[:2], [0, 61]), "f0": (pixels[2:3], [5])}, {"f9": (pixels[3:], [1, 2])})
    data = make("leaf", path=path, of="femnist")
    assert (data.shape, data.classes) == ((1, 28, 28), 62)
    assert data.x[:, 0, 0, 0].tolist() == [0, 0.25, 0.5]
    assert (data.y.tolist(), data.groups.tolist(), data.y_test.tolist()) == ([0, 61, 5], [1, 1, 0], [1, 2])


def test_several_files_are_read_in_the_order_of_their_names(leaf, tmp_path):
    path = leaf({"b": ([[1.0]] * 2, [0, 1])})
    first = {"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[0.0]], "y": [1]}}}
    (tmp_path / "train" / "a.json").write_text(json.dumps(first))
    data = make("leaf", path=path, of="synthetic", test_share=0.34)
    assert len(data.x) + len(data.x_test) == 3
    assert data.classes == 2


def test_shakespeare_is_letters_by_their_place_in_the_list(leaf):
    path = leaf({"ROMEO": (["\n !", "abc"], ["}", "d"])}, {"JULIET": ([" ab"], ["Z"])})
    data = make("leaf", path=path, of="shakespeare")
    assert (len(LETTERS), data.classes) == (80, 80)
    # Counted by hand: 25 signs and digits come before A; the alphabet and two brackets more before a.
    assert data.x.tolist() == [[0, 1, 2], [53, 54, 55]]
    assert (data.y.tolist(), data.y_test.tolist()) == ([79, 56], [50])
    assert data.x.dtype == torch.int64


def test_a_letter_that_is_not_in_the_list_is_refused(leaf):
    found = refusal("leaf", path=leaf({"u": (["abé"], ["a"])}), of="shakespeare")
    assert "does not hold what LEAF's shakespeare has (KeyError: 'é')" in str(found)


def tweet(text):
    return ["1467810369", "Mon Apr 06 22:19:45 PDT 2009", "NO_QUERY", "somebody", text, "training"]


def test_sent140_is_words_by_how_often_they_are_used(leaf):
    train = {"u": ([tweet("so so good!"), tweet("it's bad")], [1, 0]), "v": ([tweet("good")], [1])}
    path = leaf(train, {"w": ([tweet("good bad new")], [0])})
    data = make("leaf", path=path, of="sent140", length=4)
    # good 2 and so 2, in the order of the alphabet; then ! and bad and it's, once each.
    assert data.x.tolist() == [[3, 3, 2, 4], [6, 5, 0, 0], [2, 0, 0, 0]]
    assert data.x_test.tolist() == [[2, 5, 1, 0]]
    assert make("leaf", path=path, of="sent140", vocabulary=4, length=4).x.tolist()[0] == [3, 3, 2, 1]
    assert make("leaf", path=path, of="sent140").shape == (25,)


ABOUT = {"subreddit": "all", "created_utc": "1", "score": 1}


def cut(comment, length=10):
    """Cut a comment as LEAF's preprocess.py does: words with both ends, and the words one further, in pieces of 10."""
    words, targets = ["<BOS>", *comment.split(), "<EOS>"], [*comment.split(), "<EOS>", "<PAD>"]
    count = [1.0] * len(words)
    for one, empty in ((words, "<PAD>"), (targets, "<PAD>"), (count, 0.0)):
        one.extend([empty] * (-len(one) % length))
    pieces = [[one[i : i + length] for i in range(0, len(one), length)] for one in (words, targets, count)]
    return pieces[0], {**ABOUT, "target_tokens": pieces[1], "count_tokens": pieces[2]}


COMMENTS = {"1": ["a b a", "c"], "2": [" ".join("abcdefghijkl"), "a"]}


def test_both_stages_of_reddit_say_the_same(leaf, tmp_path):
    raw = leaf({user: (texts, [ABOUT] * len(texts)) for user, texts in COMMENTS.items()})
    one = make("leaf", path=raw, of="reddit", vocabulary=50, test_share=0.01)
    pieces = {user: [list(part) for part in zip(*map(cut, texts))] for user, texts in COMMENTS.items()}
    other = make("leaf", path=leaf(pieces), of="reddit", vocabulary=50, test_share=0.01)
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.y, other.y)
    assert (one.groups == other.groups).all()


def test_each_word_of_a_comment_has_the_next_one_as_its_target(leaf):
    train = {"1": (["a b a"], [ABOUT]), "2": ([" ".join("abcdefghijkl")], [ABOUT])}
    data = make(
        "leaf", path=leaf(train, {"1": (["b z"], [ABOUT]), "2": ([], [])}), of="reddit", vocabulary=30
    )
    # a 3; <BOS>, <EOS> and b 2 each, and < comes before letters; then c to l, once each.
    a, bos, eos, b, c = 2, 3, 4, 5, 6
    assert data.x[0].tolist() == [bos, a, b, a, eos, *[0] * 5]
    assert data.y[0].tolist() == [a, b, a, eos, *[PADDING] * 6]
    long = [bos, a, b, *range(c, c + 10), eos]
    assert data.x[1].tolist() == long[:10]
    assert data.y[1].tolist() == long[1:11]
    assert data.x[2].tolist() == [*long[10:], *[0] * 6]
    assert data.y[2].tolist() == [*long[11:], *[PADDING] * 7]
    assert data.groups.tolist() == [0, 1, 1]
    assert data.x_test.tolist() == [[bos, b, 1, eos, *[0] * 6]]
    assert data.classes == 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "all_0.json is not one of LEAF's files"),
        ('{"users": ["a"]}', "all_0.json is not one of LEAF's files (KeyError('user_data'))"),
        ('{"users": ["a"], "user_data": {"b": {}}}', "is not one of LEAF's files (KeyError('a'))"),
        ('{"users": ["a"], "user_data": {"a": {"x": [[1.0]], "y": []}}}', "user a has 1 x and 0 y"),
        ('{"users": [], "user_data": {}}', "its users have no samples"),
        ("{", "cannot be read (Expecting property name"),
    ],
)
def test_what_is_not_leafs_is_refused(leaf, tmp_path, text, words):
    path = leaf({})
    (Path(path) / "all_0.json").write_text(text)
    assert words in str(refusal("leaf", path=path, of="femnist"))


def test_leaf_wants_files_and_the_right_dataset(leaf, tmp_path):
    (tmp_path / "none").mkdir()
    assert "holds no .json files" in str(refusal("leaf", path=str(tmp_path / "none"), of="femnist"))
    path = leaf({"u": ([[1.0, 2.0]], [0])})
    assert "does not hold what LEAF's femnist has (ValueError" in str(
        refusal("leaf", path=path, of="femnist")
    )
    assert "does not hold what LEAF's sent140 has" in str(refusal("leaf", path=path, of="sent140"))
    path = leaf({"u": (["a b"], [ABOUT])})
    assert "vocabulary: 2: must be at least 3" in str(refusal("leaf", path=path, of="reddit", vocabulary=2))


@pytest.fixture
def hdf5(tmp_path):
    def write(clients, name="train.h5"):
        with library("h5py").File(tmp_path / name, "w") as file:
            for client, columns in clients.items():
                for column, values in columns.items():
                    file.create_dataset(f"examples/{client}/{column}", data=values)
        return str(tmp_path / name)

    return write


def test_tff_has_a_group_for_each_client(hdf5):
    train = hdf5(
        {
            "f01": {"pixels": np.full((1, 28, 28), 0.5, np.float32), "label": np.array([3], np.int32)},
            "f00": {"pixels": np.zeros((2, 28, 28), np.float32), "label": np.array([0, 1], np.int32)},
        }
    )
    test = hdf5({"f00": {"pixels": np.ones((1, 28, 28), np.float32), "label": [2]}}, "test.h5")
    data = make("tff", path=train, test_path=test, x="pixels", y="label")
    assert (data.shape, data.classes) == ((1, 28, 28), 4)
    assert data.x[:, 0, 0, 0].tolist() == [0, 0, 0.5]  # HDF5 keeps its groups in the order of their names
    assert (data.y.tolist(), data.groups.tolist(), data.y_test.tolist()) == ([0, 1, 3], [0, 0, 1], [2])


def test_tff_images_of_bytes_have_their_channels_first(hdf5):
    image = np.full((2, 4, 5, 3), 255, np.uint8)
    data = make(
        "tff", path=hdf5({"0": {"image": image, "label": [0, 1]}}), x="image", y="label", test_share=0.5
    )
    assert (data.shape, data.x.unique().tolist()) == ((3, 4, 5), [1.0])


def texts(*given):
    """Return texts as TensorFlow Federated's files have them: bytes of any length."""
    return np.array([one.encode() for one in given], dtype=library("h5py").special_dtype(vlen=bytes))


def test_tff_characters_have_the_next_one_as_their_target(hdf5):
    train = hdf5({"ROMEO": {"snippets": texts("dh@", "")}, "A": {"snippets": texts("ld~ é")}})
    data = make("tff", path=train, test_path=train, x="snippets", text="characters", length=4)
    # In the list d is the first, h the second, l the third, @ the seventh, the space the 14th of 86; strange ones are
    # 87, a text begins with 88 and ends with 89. Groups are in the order of their names.
    begin, end, strange = 88, 89, 87
    assert data.classes == 90
    assert data.x.tolist() == [
        [begin, 3, 1, strange],
        [14, strange, end, 0],
        [begin, 1, 2, 7],
        [begin, end, 0, 0],
    ]
    assert data.y.tolist() == [
        [3, 1, strange, 14],
        [strange, end, PADDING, PADDING],
        [1, 2, 7, end],
        [end, PADDING, PADDING, PADDING],
    ]
    assert data.groups.tolist() == [0, 0, 1, 1]
    assert make("tff", path=train, x="snippets", text="characters", test_share=0.5).shape == (80,)


def test_tff_words_of_stack_overflow_are_counted(hdf5):
    shape = {"title": texts("t"), "tags": texts("python|c"), "score": [3]}
    train = hdf5(
        {"00000001": {"tokens": texts("use a set a"), **shape}, "2": {"tokens": texts("a list"), **shape}}
    )
    other = hdf5({"9": {"tokens": texts("a new set"), **shape}}, "test.h5")
    data = make("tff", path=train, test_path=other, x="tokens", text="words", length=3, vocabulary=6)
    # a 3 times, <BOS> and <EOS> twice, and list comes before set and use: 2 3 4 5; the others are 1.
    assert data.x.tolist() == [[3, 1, 2], [1, 2, 4], [3, 2, 5]]
    assert data.y.tolist() == [[1, 2, 1], [2, 4, PADDING], [2, 5, 4]]
    assert data.x_test.tolist() == [[3, 2, 1], [1, 4, 0]]
    assert data.y_test.tolist() == [[2, 1, 1], [4, PADDING, PADDING]]
    assert (data.classes, data.groups.tolist()) == (6, [0, 0, 1])


def test_tiny_shakespeare_as_tff_would_hold_it(hdf5):
    """Every character of every speech is a target once, and so is every end; all characters are in the list."""
    source = Path(os.environ.get("FEDSIM_DATA", "")) / "shakespeare" / "input.txt"
    if not source.is_file():
        pytest.skip("FEDSIM_DATA has no shakespeare/input.txt")
    said: dict[str, list[str]] = {}
    for speech in source.read_text(encoding="utf-8").strip().split("\n\n")[:400]:
        who, _, what = speech.partition(":\n")
        said.setdefault(who, []).append(what)
    train = hdf5({who: {"snippets": texts(*own)} for who, own in said.items()})
    data = make("tff", path=train, test_path=train, x="snippets", text="characters")
    targets = data.y[data.y != PADDING]
    assert len(targets) == sum(len(one) + 1 for own in said.values() for one in own)
    assert 87 not in targets
    assert int((targets == 89).sum()) == sum(map(len, said.values()))
    first = data.y[int((data.groups == sorted(said).index("MENENIUS")).argmax())]
    assert "".join(TFF[code - 1] for code in first.tolist()) == said["MENENIUS"][0][:80]


TEXTS = [
    ({"x": "snippets"}, "y: is required for numbers: name the column of the labels; or say what the text x"),
    ({"x": "snippets", "y": "label"}, "x: snippets: must be a column of numbers, and is text"),
    ({"x": "label", "text": "words"}, "x: label: must be a column of text, and holds numbers"),
    ({"x": "snippets", "y": "label", "text": "words"}, "y: label: means nothing beside text"),
    ({"x": "snippets", "classes": 3, "text": "words"}, "classes: 3: means nothing beside text"),
    ({"x": "snippets", "text": "words", "vocabulary": 2}, "vocabulary: 2: must be at least 3"),
]


@pytest.mark.parametrize(("given", "says"), TEXTS)
def test_tff_texts_that_are_none_are_refused(hdf5, given, says):
    path = hdf5({"0": {"snippets": texts("to be"), "label": [0]}})
    assert says in str(refusal("tff", path=path, **given))


def test_tff_files_that_do_not_fit_are_refused(hdf5, tmp_path):
    path = hdf5({"0": {"snippets": [b"to be"], "label": [0]}})
    assert "x: snippet: there is no such column" in str(refusal("tff", path=path, x="snippet", y="label"))
    assert "did you mean snippets?" in str(refusal("tff", path=path, x="snippet", y="label"))
    assert "x: snippets: must be a column of numbers" in str(
        refusal("tff", path=path, x="snippets", y="label")
    )
    with library("h5py").File(tmp_path / "other.h5", "w") as file:
        file["weights"] = [1.0]
    with library("h5py").File(tmp_path / "nobody.h5", "w") as file:
        file.create_group("examples")
    assert refusal("tff", path=str(tmp_path / "nobody.h5"), x="x", y="y").rule == "has no clients"
    uneven = refusal("tff", path=hdf5({"A": {"x": [1.0]}, "B": {"z": [1.0]}}, "z.h5"), x="x", y="x")
    assert uneven.rule == "client B has no column x, and others have"
    other = refusal("tff", path=str(tmp_path / "other.h5"), x="x", y="y")
    assert other.rule == "holds ['weights'], and no group named examples"


@pytest.mark.parametrize(
    ("second", "rule"),
    [
        # In all there are as many labels as images: those of B would go to C.
        (
            {"B": {"x": [[1.0], [2.0]], "y": [0]}, "C": {"x": [[3.0]], "y": [1, 1]}},
            "client B has not as many rows in each column: 2 in x, 1 in y",
        ),
        (
            {"B": {"x": [[1.0, 2.0]], "y": [0]}},
            "client B has samples of shape (2,) in x, and others (1,)",
        ),
    ],
)
def test_each_client_of_tff_has_a_label_for_each_sample(hdf5, second, rule):
    path = hdf5({"A": {"x": [[5.0]], "y": [1]}, **second})
    assert refusal("tff", path=path, x="x", y="y").rule == rule


def test_labels_of_leaf_are_whole_numbers(leaf):
    pixels = [[0.0] * 784] * 4
    data = make("leaf", path=leaf({"a": (pixels, [3.0, 61, 3.0, 61])}), of="femnist", test_share=0.5)
    assert (data.y.tolist(), data.y.dtype) == ([3, 61], torch.int64)
    wrong = refusal("leaf", path=leaf({"a": (pixels, [3, 61, 1.5, 0])}), of="femnist")
    assert str(wrong) == "y: 1.5: labels must be whole numbers"


def test_celeba_is_the_pictures_that_are_named(leaf, tmp_path):
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 51)]):
        Image.new("RGB", (6, 4), colour).save(folder / f"{number:06}.png")
    train = {"7": (["000002.png", "000000.png"], [1, 0]), "3": (["000001.png"], ["1"])}
    path = leaf(train, {"9": (["000000.png"], [0])})
    data = make("leaf", path=path, of="celeba", images=str(folder), size=8)
    assert (data.shape, data.classes, data.y.tolist(), data.groups.tolist()) == (
        (3, 8, 8),
        2,
        [1, 0, 1],
        [1, 1, 0],
    )
    assert data.x[:, :, 3, 5].tolist() == [[0, 0, pytest.approx(0.2)], [1, 0, 0], [0, 1, 0]]
    assert data.x_test[0, :, 0, 0].tolist() == [1, 0, 0]
    assert make("leaf", path=path, of="celeba", images=str(folder)).shape == (3, 84, 84)
    assert "set images to the folder" in str(refusal("leaf", path=path, of="celeba"))
    (folder / "000001.png").unlink()
    found = refusal("leaf", path=path, of="celeba", images=str(folder))
    assert (found.key, found.rule) == ("images", "there is no picture 000001.png, which LEAF's files name")
