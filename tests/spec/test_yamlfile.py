from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.spec.yamlfile import Document, dotted, parse, read, set_value, steps, write

TEXT = """\
# a comment
name: demo

strategy:
  name: fedavg
  local: {lr: 0.1, steps: 5}
faults:
  - name: crash
    at_s: 3
  - late
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_the_line_of_every_key():
    document = parse(TEXT, "x.yaml")
    assert document.line(("name",)) == 2
    assert document.line(("strategy",)) == 4
    assert document.line(("strategy", "name")) == 5
    assert document.line(("strategy", "local")) == 6
    assert document.line(("strategy", "local", "steps")) == 6
    assert document.line(("faults",)) == 7
    assert document.line(("faults", 0)) == 8
    assert document.line(("faults", 0, "at_s")) == 9
    assert document.line(("faults", 1)) == 10


def test_a_key_that_is_not_there_has_the_line_of_the_block_around_it():
    document = parse(TEXT, "x.yaml")
    assert document.line(("strategy", "timeout_s")) == 4
    assert document.line(("strategy", "local", "lr", "deep", 3)) == 6
    assert document.line(("faults", 0, "node")) == 8
    assert document.line(("seed",)) == 2
    assert document.source(("faults", 7)) == "x.yaml:7"


def test_a_document_without_a_file_has_no_source():
    assert Document(data={"a": 1}).source(("a",)) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("190:20:30", "190:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00Z"),
        ("1e", "1e"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read_back = parse(f"key: {text}", "x.yaml").data["key"]
    assert read_back == value
    assert type(read_back) is type(value)


def test_not_a_number_is_a_float():
    assert math.isnan(parse("key: .nan", "x.yaml").data["key"])


def test_keys_are_text():
    assert parse("1: a\non: b\nnull: c", "x.yaml").data == {"1": "a", "on": "b", "null": "c"}


def test_an_alias_repeats_a_value():
    document = parse("a: &one {x: 1}\nb: *one", "x.yaml")
    assert document.data == {"a": {"x": 1}, "b": {"x": 1}}
    document.set("b.x", 2)
    assert document.data["a"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml:1: is empty"),
        ("# only a comment\n", "x.yaml:1: is empty"),
        ("\n- 1\n", "x.yaml:2: the top level must be keys with values, not a list"),
        ("hello", "x.yaml:1: the top level must be keys with values, not a single value"),
        ("a:\n\tb: 1", "x.yaml:2: a tab is used for indentation; use spaces"),
        ("a:\n  b: 1\n \tc: 2", "x.yaml:3: a tab is used for indentation; use spaces"),
        ("a: 1\nb:\n  c: 2\na: 3", "x.yaml:4: a: is written twice, in line 1 and in line 4"),
        ("b:\n  c: 2\n  c: 2", "x.yaml:3: b.c: is written twice, in line 2 and in line 3"),
        ("a: &x [1, *x]", "x.yaml:1: a.1: an alias contains itself"),
        ("a: &x\n  b: *x", "x.yaml:2: a.b: an alias contains itself"),
        ("a: 1\nb: !magic 3", "x.yaml:2: b: the tag !magic is not supported"),
        ("a: !!python/none {}", "x.yaml:1: a: the tag !!python/none is not supported"),
        ("a: !!int ten", "x.yaml:1: a: ten is not a YAML int"),
        ("? [1]\n: 2", "x.yaml:1: a key must be text"),
        ("a: 1\nb: \x01", "x.yaml:2: character U+0001 is not allowed"),
        ("[" * 5000, "x.yaml:1: is nested too deeply"),
        ("a: " + "9" * 5000, "x.yaml:1: a: a number of 5000 digits is too long"),
    ],
)
def test_what_is_refused(text, message):
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "place", "about"),
    [
        ("a: 1\nb: [1, 2\nc: 3", "x.yaml:3: ", "flow sequence"),
        ("a: 1\n b: 2", "x.yaml:2: ", "mapping values are not allowed here"),
        ("a: 1\nb: 'open", "x.yaml:2: ", "quoted scalar"),
        ("a: *nobody", "x.yaml:1: ", "undefined alias"),
        ("a: 1\n---\nb: 2", "x.yaml:2: ", "single document"),
    ],
)
def test_a_syntax_error_says_where_and_what(text, place, about):
    message = refusal(text)
    assert message.startswith(f"{place}is not valid YAML: ")
    assert about in message


def test_aliases_of_aliases_do_not_fill_the_memory():
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    assert "more than 1000000 values" in refusal("\n".join(rows))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "no.yaml")
    assert str(caught.value) == f"{tmp_path / 'no.yaml'}: no such file"


def test_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read(tmp_path)


def test_a_path_through_a_file(tmp_path):
    (tmp_path / "file").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"cannot be read \(Not a directory\)"):
        read(tmp_path / "file" / "x.yaml")


def test_a_name_that_cannot_be_a_file():
    with pytest.raises(ConfigError, match="cannot be read"):
        read("a\0b")


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8 at byte 9 (0xff); save the file as UTF-8"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: \xc3\xa9\r\n")
    document = read(Path(path))
    assert document.data == {"a": 1, "b": "é"}
    assert document.line(("b",)) == 2


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(
        ["1e3", "010", "on", "null", ".inf", "0x1", "~", "-", "a: b", "#", "a\tb", "\ta\n\tb", "<<"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), plain, min_size=1, max_size=4))
def test_what_is_written_reads_back_equal(data):
    read_back = parse(write(data), "x.yaml").data
    assert repr(read_back) == repr(data)


def test_writing_keeps_the_order_and_shares_nothing():
    shared = [1]
    assert write({"b": shared, "a": shared}) == "b:\n- 1\na:\n- 1\n"


def test_steps_and_dotted_are_inverse():
    assert steps("a.0.b") == ("a", 0, "b")
    assert steps("") == ()
    assert dotted(("a", 0, "b")) == "a.0.b"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "7", {"seed": 7}),
        ("seed", 7, {"seed": 7}),
        ("stop.target.accuracy", "0.9", {"stop": {"target": {"accuracy": 0.9}}}),
        ("topology", "{name: ring}", {"topology": {"name": "ring"}}),
        ("lr", "[1, 1e-1]", {"lr": [1, 0.1]}),
        ("name", "no", {"name": "no"}),
        ("name", "", {"name": None}),
        ("name", "'7'", {"name": "7"}),
    ],
)
def test_setting_a_value_in_empty_data(key, value, expected):
    data: dict[str, object] = {}
    set_value(data, key, value)
    assert data == expected


def test_setting_a_value_in_place():
    data = parse(TEXT, "x.yaml").data
    assert set_value(data, "faults.0.at_s", "3.5") == ("faults", 0, "at_s")
    assert set_value(data, "faults.1.at_s", 4) == ("faults", 1, "at_s")
    assert set_value(data, "strategy.local.lr", "1e-2") == ("strategy", "local", "lr")
    assert data == {
        "name": "demo",
        "strategy": {"name": "fedavg", "local": {"lr": 0.01, "steps": 5}},
        "faults": [{"name": "crash", "at_s": 3.5}, {"name": "late", "at_s": 4}],
    }


def test_an_empty_block_is_filled():
    data = parse("network:\n", "x.yaml").data
    set_value(data, "network.latency_ms", "5")
    assert data == {"network": {"latency_ms": 5}}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "faults.2.at_s",
            "3",
            "--set faults.2.at_s=3: faults: 2 must be an index below 2, the length of the list",
        ),
        ("faults.x", "3", "--set faults.x=3: faults: x must be an index below 2, the length of the list"),
        ("faults.-1", "3", "--set faults.-1=3: faults: -1 must be an index below 2, the length of the list"),
        ("strategy..lr", "3", "--set strategy..lr=3: a key has an empty part; write block.key=value"),
        (
            "strategy.local.lr.x",
            "3",
            "--set strategy.local.lr.x=3: strategy.local.lr: 0.1: is a single value and has no keys",
        ),
        ("a", "!x 3", "--set a=!x 3: the tag !x is not supported"),
        ("a", "{b: 1, b: 2}", "--set a={b: 1, b: 2}: b: is written twice, in line 1 and in line 1"),
    ],
)
def test_a_setting_that_is_refused_names_itself(key, value, message):
    with pytest.raises(ConfigError) as caught:
        set_value(parse(TEXT, "x.yaml").data, key, value)
    assert str(caught.value) == message


def test_a_setting_with_broken_yaml_names_itself():
    with pytest.raises(ConfigError, match=r"^--set a=\[1: is not valid YAML: "):
        set_value({}, "a", "[1")


def test_an_override_is_the_source_of_the_blocks_that_only_it_made():
    document = parse(TEXT, "x.yaml")
    document.set("stratgey.local.lr", "0.2")
    document.set("stratgey.local.steps", "3")
    first = "--set stratgey.local.lr=0.2"
    assert [document.source(("stratgey", "local")[:n]) for n in (1, 2)] == [first, first]
    assert document.source(("stratgey", "name")) == first
    assert document.source(("stratgey", "local", "steps")) == "--set stratgey.local.steps=3"
    document.set("strategy.deep.p", "1")
    assert document.source(("strategy", "deep")) == "--set strategy.deep.p=1"
    assert document.source(("strategy",)) == "x.yaml:4"
    document.set("faults.1.deep.at_s", "1")
    assert document.source(("faults", 1, "deep")) == "--set faults.1.deep.at_s=1"
    assert document.source(("faults", 1)) == "x.yaml:10"
    assert document.source(("data",)) == "x.yaml:2"


def test_an_override_is_the_source_of_a_default_block_that_the_file_does_not_name():
    document = parse(TEXT, "x.yaml")
    document.data["model"] = "mlp"
    document.set("model.hidden", "8")
    assert document.source(("model", "name")) == "--set model.hidden=8"


def test_data_from_no_file_are_not_blamed_on_an_override():
    document = Document(data={"strategy": {"nam": "x"}})
    document.set("strategy.p", 1)
    document.set("modle.p", 1)
    assert document.source(("strategy", "nam")) == ""
    assert document.source(("modle",)) == "--set modle.p=1"


def test_an_override_is_the_source_of_its_value_and_of_all_below():
    document = parse(TEXT, "x.yaml")
    document.set("strategy.local", "{lr: 1}")
    assert document.source(("strategy", "local", "lr")) == "--set strategy.local={lr: 1}"
    assert document.source(("strategy", "name")) == "x.yaml:5"
    document.set("strategy", "fedprox")
    assert document.source(("strategy", "local", "lr")) == "--set strategy=fedprox"
    assert document.line(("strategy", "name")) == 2
