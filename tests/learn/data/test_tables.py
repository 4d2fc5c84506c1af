"""Tables that a user brings: CSV and Parquet, of one file or of two."""

from __future__ import annotations

import pytest
import torch

from fedsim.learn.data.samples import library
from tests.learn.data.test_own_data import make, refusal


@pytest.fixture
def csv(tmp_path):
    def write(*lines, name="rows.csv"):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


ROWS = ["age,town,ok,ill"] + ["30,Rome,true,no", "50,Oslo,false,yes"] * 3


def test_a_table_of_numbers_categories_and_truth_values(csv):
    test = csv("age,town,ok,ill", "40,Bern,true,yes", name="test.csv")
    data = make("table", path=csv(*ROWS), test_path=test, label="ill")
    # age; town is Oslo, town is Rome; ok is False, ok is True. Nobody in training is of Bern.
    assert data.x[:2].tolist() == [[30, 0, 1, 0, 1], [50, 1, 0, 1, 0]]
    assert data.x_test.tolist() == [[40, 0, 0, 0, 1]]
    assert (data.y.tolist(), data.y_test.tolist(), data.classes) == ([0, 1] * 3, [1], 2)


def test_columns_are_chosen_and_typed(csv):
    path = csv("a,b,c,who", "1,2,0,x", "3,4,1,y", "1,6,0,x")
    data = make("table", path=path, test_path=path, label="c", features=["b", "a"], types={"a": "category"})
    assert data.x.tolist() == [[2, 1, 0], [4, 0, 1], [6, 1, 0]]
    data = make("table", path=path, test_path=path, label="c", group="who", types={"c": "number"})
    assert (data.x.tolist(), data.groups.tolist()) == ([[1, 2], [3, 4], [1, 6]], [0, 1, 0])
    assert (data.loss, data.y.tolist()) == ("half_square", [0, 1, 0])


def test_numbers_are_standardised_by_what_they_are_in_training(csv):
    path, test = csv("a,b,same,y", "1,p,5,0", "3,q,5,1"), csv("a,b,same,y", "5,p,6,1", name="t.csv")
    data = make("table", path=path, test_path=test, label="y", standardise=True)
    # a: mean 2, deviation 1; the category stays; what never changes in training is only shifted.
    assert data.x.tolist() == [[-1, 1, 0, 0], [1, 0, 1, 0]]
    assert data.x_test.tolist() == [[3, 1, 0, 1]]


def test_large_numbers_are_standardised_before_they_are_rounded(csv):
    """Of the seconds of 2020, float32 has one in 128."""
    rows = [f"{1_600_000_000 + second},{0.1},{second % 2}" for second in range(5)]
    path = csv("time,same,y", *rows)
    data = make("table", path=path, test_path=path, label="y", standardise=True)
    # 0 to 4 have the mean 2 and the variance (4 + 1 + 0 + 1 + 4) / 5 = 2; 0.1 is no binary number, and never changes.
    wanted = [[(second - 2) / 2**0.5, 0.0] for second in range(5)]
    torch.testing.assert_close(data.x, torch.tensor(wanted), rtol=0, atol=1e-7)
    assert torch.equal(data.x, data.x_test)


def test_what_looks_like_numbers_in_the_test_is_what_it_is_in_training(csv):
    """The test alone would be read as numbers in ``code``, and as floating-point ones in ``y``."""
    path = csv("code,ok,y", "1,true,0", "A,false,1", "2,true,1")
    test = csv("code,ok,y", "2,false,1.0", "1,true,0.0", name="t.csv")
    data = make("table", path=path, test_path=test, label="y")
    # code is 1, 2, A; ok is False, True
    assert data.x_test.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert (data.classes, data.y.tolist(), data.y_test.tolist(), data.note) == (2, [0, 1, 1], [1, 0], "")
    labels = make(
        "table", path=csv("a,y", "5,1", "6,x"), test_path=csv("a,y", "5,1", name="t.csv"), label="y"
    )
    assert (labels.classes, labels.y.tolist(), labels.y_test.tolist()) == (2, [0, 1], [0])
    whole = make(
        "table", path=csv("a,y", "5,0.5", "6,2"), test_path=csv("a,y", "5,1", name="t.csv"), label="y"
    )
    assert (whole.loss, whole.y.tolist(), whole.y_test.tolist()) == ("half_square", [0.5, 2], [1])


@pytest.mark.parametrize(
    ("train", "test", "given", "words"),
    [
        (["5,0", "6,1"], ["5,0.5"], {}, "y: 0.5: is a label of the test, and those of training are whole"),
        (["5,0.5", "6,1"], ["5,x"], {}, "y: the labels of training are numbers, and those of the test text"),
        (
            ["5,0", "6,1"],
            ["x,0"],
            {"types": {"a": "category"}},
            "the column a holds values of another type than in ",
        ),
        (
            ["5,-1", "6,1"],
            ["5,1.0"],
            {"types": {"y": "category"}},
            "the column y holds values of another type than in ",
        ),
        (["true,0", "false,1"], ["x,0"], {}, "cannot be read (In CSV column #0: CSV conversion error"),
    ],
)
def test_a_test_of_another_kind_than_training_is_refused(csv, train, test, given, words):
    paths = {"path": csv("a,y", *train), "test_path": csv("a,y", *test, name="t.csv")}
    assert words in str(refusal("table", label="y", **paths, **given))


def test_the_test_says_whose_its_rows_are_where_it_can(csv):
    path = csv("a,who,y", "1,v,0", "2,u,1", "3,v,1")
    given = {"path": path, "label": "y", "group": "who", "features": ["a"]}
    data = make("table", test_path=csv("a,who,y", "5,u,0", "6,w,1", "7,v,1", name="t.csv"), **given)
    # u is 0 and v is 1; of w there is nothing in training
    assert (data.groups.tolist(), data.test_groups.tolist()) == ([1, 0, 1], [0, -1, 1])
    data = make("table", test_path=csv("a,y", "5,0", name="t.csv"), **given)
    assert (data.groups.tolist(), data.test_groups) == ([1, 0, 1], None)


def test_decimals_are_numbers_and_bytes_are_text(tmp_path):
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    held = {
        "price": arrow.array([1, 2, 3, 4]).cast(arrow.decimal128(21, 2)),
        "town": arrow.array([b"Rome", b"Oslo"] * 2),
        "kind": arrow.array(["a", "b"] * 2).dictionary_encode(),
        "y": [0, 1] * 2,
    }
    parquet.write_table(arrow.table(held), tmp_path / "d.parquet")
    path = str(tmp_path / "d.parquet")
    data = make("table", path=path, test_path=path, label="y")
    # price; town is Oslo, Rome; kind is a, b
    assert data.x.tolist() == [[1, 0, 1, 1, 0], [2, 1, 0, 0, 1], [3, 0, 1, 1, 0], [4, 1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1, 2], [3, 4]], "the column a holds list<element: int64>, not one number or text in a row"),
        ([b"\xe9", b"b"], "the column a is no text in UTF-8; save the file in UTF-8, or leave it out"),
    ],
)
def test_a_column_that_is_no_input_is_named(tmp_path, values, words):
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    parquet.write_table(arrow.table({"a": values, "y": [0, 1]}), tmp_path / "d.parquet")
    assert words in str(refusal("table", path=str(tmp_path / "d.parquet"), label="y"))
    (tmp_path / "d.csv").write_bytes(b"a,y\n\xe9,0\nb,1\n")
    assert "the column a is no text" in str(refusal("table", path=str(tmp_path / "d.csv"), label="y"))


def test_a_class_that_the_test_alone_has_is_told(csv):
    data = make("table", path=csv("a,y", "5,u", "6,v"), test_path=csv("a,y", "5,w", name="t.csv"), label="y")
    assert (data.note, data.classes) == ("no training sample has the label ['w'], and the test has", 3)


def test_parquet_says_the_same_as_csv(csv, tmp_path):
    reader, parquet = library("pyarrow.csv"), library("pyarrow.parquet")
    path = csv(*ROWS)
    parquet.write_table(reader.read_csv(path), tmp_path / "rows.parquet")
    one, other = (make("table", path=p, label="ill") for p in (path, str(tmp_path / "rows.parquet")))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.y_test, other.y_test)


def test_a_number_with_a_quoted_comma_and_tabs(csv):
    data = make(
        "table",
        path=csv("a\ty", '"x, y"\t0', "z\t1", "z\t0", "z\t1", name="r.tsv"),
        label="y",
        test_share=0.5,
    )
    assert data.shape == (2,)


@pytest.mark.parametrize(
    ("lines", "given", "words"),
    [
        (ROWS, {"label": "il"}, "label: il: there is no such column; did you mean ill?"),
        (ROWS, {"label": "ill", "group": "twn"}, "group: twn: there is no such column; did you mean town?"),
        (ROWS, {"label": "ill", "features": ["ages"]}, "features: ages: there is no such column"),
        (ROWS, {"label": "ill", "features": ["ill"]}, "besides the label ill"),
        (ROWS, {"label": "ill", "types": {"towm": "category"}}, "types: towm: there is no such column"),
        (
            ROWS,
            {"label": "ill", "types": {"town": "number"}},
            "types: town: is not a column of numbers: Rome",
        ),
        (
            ROWS,
            {"label": "town", "types": {"town": "number"}},
            "types: town: is not a column of numbers: Rome",
        ),
        (ROWS, {"label": "ill", "types": {"town": "text"}}, "types.town: text: must be number or category"),
        (
            ["a,y", "1,0", ",1", ",0"],
            {"label": "y"},
            "row 2 has no value in the column a, nor have 1 more; fill",
        ),
        (["a,y", "1,0", "NaN,1"], {"label": "y"}, "row 2 has no value in the column a; fill"),
        (["a,y", "1,0", "2,"], {"label": "y"}, "row 2 has no value in the column y; fill"),
        (["a,a,y", "1,1,0"], {"label": "y"}, "has two columns with the name a"),
        (["a,y"], {"label": "y"}, "has no rows"),
        (["a,y", "1,0", "1,2,3"], {"label": "y"}, "cannot be read (CSV parse error"),
    ],
)
def test_tables_that_do_not_fit_are_refused(csv, lines, given, words):
    assert words in str(refusal("table", path=csv(*lines), **given))


def test_a_table_of_another_ending_or_kind_is_refused(csv, tmp_path):
    assert "must end in .csv, .tsv, .parquet" in str(
        refusal("table", path=csv(*ROWS, name="a.xlsx"), label="ill")
    )
    wrong = csv(*ROWS, name="a.parquet")
    assert refusal("table", path=wrong, label="ill").rule.startswith("cannot be read (Could not open Parquet")
