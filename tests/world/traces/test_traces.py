from __future__ import annotations

import json
import math
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.cli.tracing import generate
from fedsim.errors import BadValue
from fedsim.world.clock import micros
from fedsim.world.traces.files import (
    Availability,
    Device,
    read,
    read_availability,
    read_capacity,
    write,
)

HEAD = "node,start_s,end_s\n"
SPEEDS = "node,seconds_per_sample\n"


def load(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read(path)


def refused(tmp_path, text, name="a.csv"):
    with pytest.raises(BadValue) as caught:
        load(tmp_path, text, name)
    assert (caught.value.key, caught.value.value) == ("path", str(tmp_path / name))
    return caught.value.rule


def outcome(path):
    """A trace, or the rule that the file breaks."""
    try:
        return read(path)
    except BadValue as error:
        return error.rule


# availability


def test_a_csv_with_all_there_is_to_say(tmp_path):
    text = (
        "# recorded in May\n# period_s: 60\n# nodes: 4\n\nnode,start_s,end_s\n0,1,2.5\n\n2,0,10\n0,2.5,60\n"
    )
    sessions = (((1.0, 2.5), (2.5, 60.0)), (), ((0.0, 10.0),), ())
    assert load(tmp_path, text) == Availability(60.0, sessions)


def test_what_a_csv_may_leave_out(tmp_path):
    assert load(tmp_path, HEAD + "1,3,8\n0,1,2") == Availability(8.0, (((1.0, 2.0),), ((3.0, 8.0),)))


def test_columns_come_in_any_order_and_with_blanks(tmp_path):
    text = '\ufeffend_s , node, start_s\r\n 2.5 ,0, 1e0\r\n"4",0," 3 "\r\n'
    assert load(tmp_path, text) == Availability(4.0, (((1.0, 2.5), (3.0, 4.0)),))


def test_all_may_be_offline_all_the_time(tmp_path):
    assert load(tmp_path, f"# period_s: 5\n# nodes: 2\n{HEAD}") == Availability(5.0, ((), ()))


def test_a_json(tmp_path):
    text = '{"period_s": 60, "nodes": [[[1, 2.5], [2.5, 60]], []]}'
    assert load(tmp_path, text, "a.json") == Availability(60.0, (((1.0, 2.5), (2.5, 60.0)), ()))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "a.csv is empty"),
        ("# period_s: 60\n", "a.csv is empty"),
        (HEAD, "a.csv is empty: it has no session"),
        (f"# nodes: 3\n{HEAD}", "a.csv is empty: it has no session"),
        ("node,start_s\n0,1\n", "a.csv, line 1: the column end_s is missing"),
        ("start_s,end_s\n0,1\n", "a.csv, line 1: the column node is missing"),
        ("node,start_s,end_s,model\n", "a.csv, line 1: unknown column model"),
        ("node,start_s,end_s,end_s\n", "a.csv, line 1: the column end_s is there twice"),
        (HEAD + "0,1\n", "a.csv, line 2: has 2 values, must have 3: node,start_s,end_s"),
        (HEAD + "0,1,2,3\n", "a.csv, line 2: has 4 values, must have 3: node,start_s,end_s"),
        (
            HEAD + "0,1,2\n0,-1,5\n",
            "a.csv, line 3: start_s is -1, must be a number of at least 0 and at most 1e+12",
        ),
        (
            HEAD + "0,nan,2\n",
            "a.csv, line 2: start_s is nan, must be a number of at least 0 and at most 1e+12",
        ),
        (HEAD + "0,1,inf\n", "a.csv, line 2: end_s is inf, must be a number of at least 0 and at most 1e+12"),
        (
            HEAD + "0,1,1e400\n",
            "a.csv, line 2: end_s is 1e400, must be a number of at least 0 and at most 1e+12",
        ),
        (
            HEAD + "0,1,soon\n",
            "a.csv, line 2: end_s is soon, must be a number of at least 0 and at most 1e+12",
        ),
        (HEAD + "0,1,\n", "a.csv, line 2: end_s is empty, must be a number of at least 0 and at most 1e+12"),
        (HEAD + "0,2,2\n", "a.csv, line 2: end_s is 2, must be after start_s (2)"),
        (HEAD + "0,3,2\n", "a.csv, line 2: end_s is 2, must be after start_s (3)"),
        (
            HEAD + "0,1,4\n1,0,9\n0,3,5\n",
            "a.csv, line 4: start_s is 3, must not be before 4, where the node's last session ended",
        ),
        (
            HEAD + "0,6,7\n0,1,2\n",
            "a.csv, line 3: start_s is 1, must not be before 7, where the node's last session ended",
        ),
        (
            "# period_s: 5\n" + HEAD + "0,1,6\n",
            "a.csv, line 3: end_s is 6, must be at most the period of 5 s",
        ),
        (
            "# period_s: 0\n" + HEAD,
            "a.csv, line 1: period_s is 0, must be a number above 0 and at most 1e+12",
        ),
        (
            "# period_s: day\n" + HEAD,
            "a.csv, line 1: period_s is day, must be a number above 0 and at most 1e+12",
        ),
        ("# nodes: -1\n" + HEAD, "a.csv, line 1: nodes is -1, must be a whole number from 0 to 1000000"),
        ("# nodes: 2\n" + HEAD + "2,0,1\n", "a.csv, line 3: node is 2, must be below 2, the number of nodes"),
        (HEAD + "0.5,0,1\n", "a.csv, line 2: node is 0.5, must be a whole number from 0 to 1000000"),
        (HEAD + "9999999,0,1\n", "a.csv, line 2: node is 9999999, must be a whole number from 0 to 1000000"),
        (HEAD + ",0,1\n", "a.csv, line 2: node is empty, must be a whole number from 0 to 1000000"),
        (HEAD + "0,0,1\n5,0,1\n", "a.csv has no session of node 1, but one of node 5"),
    ],
)
def test_what_is_wrong_in_a_csv(tmp_path, text, rule):
    assert refused(tmp_path, text) == rule


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ([], "a.json must be {period_s, nodes} with a list of nodes, or only {nodes}"),
        ({}, "a.json must be {period_s, nodes} with a list of nodes, or only {nodes}"),
        (
            {"period_s": 5, "nodes": {}},
            "a.json must be {period_s, nodes} with a list of nodes, or only {nodes}",
        ),
        (
            {"period_s": 5, "nodes": [[]], "x": 1},
            "a.json must be {period_s, nodes} with a list of nodes, or only {nodes}",
        ),
        ({"period_s": 5, "nodes": []}, "a.json is empty: it has no node"),
        ({"nodes": [[[0, 1]]]}, "a.json, top level: period_s is missing"),
        ({"period_s": "5", "nodes": [[]]}, "a.json, top level: period_s is the text 5"),
        (
            {"period_s": True, "nodes": [[]]},
            "a.json, top level: period_s is True, must be a number above 0 and at most 1e+12",
        ),
        ({"period_s": 5, "nodes": [[], 3]}, "a.json, node 1: is 3, must be a list of sessions"),
        (
            {"period_s": 5, "nodes": [[], [3]]},
            "a.json, node 1, session 0: is 3, must be [start, end] in seconds",
        ),
        (
            {"period_s": 5, "nodes": [[[0, 1], [1, 2, 3]]]},
            "a.json, node 0, session 1: is [1, 2, 3], must be [start, end] in seconds",
        ),
        (
            {"period_s": 5, "nodes": [[["0", 1]]]},
            "a.json, node 0, session 0: is ['0', 1], must be [start, end] in seconds",
        ),
        (
            {"period_s": 5, "nodes": [[[None, 1]]]},
            "a.json, node 0, session 0: start_s is None, must be a number of at least 0 and at most 1e+12",
        ),
        (
            {"period_s": 5, "nodes": [[[0, math.nan]]]},
            "a.json, node 0, session 0: end_s is nan, must be a number of at least 0 and at most 1e+12",
        ),
        (
            {"period_s": 5, "nodes": [[[0, 10**400]]]},
            f"a.json, node 0, session 0: end_s is 1{'0' * 36}..., must be a number of at least 0 and at most 1e+12",
        ),
        (
            {"period_s": 5, "nodes": [[[0, 2], [1, 3]]]},
            "a.json, node 0, session 1: start_s is 1, must not be before 2, where the node's last session ended",
        ),
        (
            {"period_s": 5, "nodes": [[[0, 6]]]},
            "a.json, node 0, session 0: end_s is 6, must be at most the period of 5 s",
        ),
    ],
)
def test_what_is_wrong_in_a_json(tmp_path, data, rule):
    assert refused(tmp_path, json.dumps(data), "a.json") == rule


def test_broken_json_names_its_line(tmp_path):
    assert refused(tmp_path, '{"period_s": 5,\n "nodes": [[[0, 1]', "a.json").startswith(
        "a.json, line 2: is not"
    )
    assert refused(tmp_path, "[" * 100_000, "a.json").startswith("a.json is not JSON")


# capacity


def test_a_capacity_csv(tmp_path):
    text = "node,seconds_per_sample,up_mbps,down_mbps\n0,0.012,5.5,20\n1,0.3,,\n2,1,,7\n"
    assert load(tmp_path, text) == (Device(0.012, 5.5, 20.0), Device(0.3), Device(1.0, None, 7.0))
    assert load(tmp_path, SPEEDS + "0,2\n") == (Device(2.0, None, None),)


def test_a_capacity_json(tmp_path):
    text = '{"nodes": [{"seconds_per_sample": 0.012, "up_mbps": 5.5}, {"seconds_per_sample": 3, "down_mbps": null}]}'
    assert load(tmp_path, text, "c.json") == (Device(0.012, 5.5), Device(3.0))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (SPEEDS, "a.csv is empty: it has no node"),
        ("node,up_mbps\n0,1\n", "a.csv, line 1: the column seconds_per_sample is missing"),
        ("seconds_per_sample\n1\n", "a.csv, line 1: the column node is missing"),
        ("node,seconds_per_sample,up_mpbs\n", "a.csv, line 1: unknown column up_mpbs"),
        (
            SPEEDS + "0,0\n",
            "a.csv, line 2: seconds_per_sample is 0, must be a number above 0 and at most 1e+12",
        ),
        (
            SPEEDS + "0,fast\n",
            "a.csv, line 2: seconds_per_sample is fast, must be a number above 0 and at most 1e+12",
        ),
        (SPEEDS + "0,1\n2,1\n", "a.csv, line 3: node is 2, must be 1"),
        (SPEEDS + "0,1\n0,1\n", "a.csv, line 3: node is 0, must be 1"),
        (
            "node,seconds_per_sample,up_mbps\n0,1,-3\n",
            "a.csv, line 2: up_mbps is -3, must be a number above 0 and at most 1e+12",
        ),
    ],
)
def test_what_is_wrong_in_a_capacity_csv(tmp_path, text, rule):
    assert refused(tmp_path, text) == rule


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        ({}, "c.json, node 1: seconds_per_sample is missing"),
        ({"speed": 3}, "c.json, node 1: unknown key speed"),
        ({"seconds_per_sample": "3"}, "c.json, node 1: seconds_per_sample is the text 3, must be a number"),
        (
            {"seconds_per_sample": [3]},
            "c.json, node 1: seconds_per_sample is [3], must be a number above 0 and at most 1e+12",
        ),
        (
            {"seconds_per_sample": 3, "up_mbps": 0},
            "c.json, node 1: up_mbps is 0, must be a number above 0 and at most 1e+12",
        ),
    ],
)
def test_what_is_wrong_in_a_capacity_json(tmp_path, node, rule):
    text = json.dumps({"nodes": [{"seconds_per_sample": 1}, node]})
    assert refused(tmp_path, text, "c.json") == rule


# files


@pytest.mark.parametrize("name", ["a.txt", "a", "a.pickle", "a.csv.gz"])
def test_the_name_tells_the_format(tmp_path, name):
    assert refused(tmp_path, HEAD, name) == f"{name} must end in .csv or .json"
    with pytest.raises(BadValue, match=r"must end in \.csv or \.json"):
        write(tmp_path / name, (Device(1.0),))


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(BadValue, match=r"no\.csv does not exist"):
        read("no.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadValue, match=r"folder\.csv cannot be read \(Is a directory\)"):
        read(tmp_path / "folder.csv")
    (tmp_path / "binary.csv").write_bytes(b"node,\xff\xfe")
    with pytest.raises(BadValue, match=r"binary\.csv is not UTF-8 at byte 6"):
        read(tmp_path / "binary.csv")
    with pytest.raises(BadValue, match=r"a\.csv cannot be written"):
        write(tmp_path / "no" / "a.csv", (Device(1.0),))


def test_each_reader_wants_its_kind(tmp_path):
    write(tmp_path / "c.csv", (Device(1.0),))
    write(tmp_path / "a.csv", Availability(1.0, (((0.0, 1.0),),)))
    assert read_capacity(tmp_path / "c.csv") == (Device(1.0),)
    assert read_availability(tmp_path / "a.csv").period_s == 1
    with pytest.raises(BadValue, match=r"c\.csv is a capacity trace"):
        read_availability(tmp_path / "c.csv")
    with pytest.raises(BadValue, match=r"a\.csv is an availability trace"):
        read_capacity(tmp_path / "a.csv")


def test_a_csv_as_it_is_written(tmp_path):
    write(tmp_path / "a.csv", Availability(60.0, (((0.5, 2.0),), ())))
    assert (tmp_path / "a.csv").read_text() == "# period_s: 60.0\n# nodes: 2\nnode,start_s,end_s\n0,0.5,2.0\n"
    write(tmp_path / "c.csv", (Device(0.5, None, 2.0),))
    assert (tmp_path / "c.csv").read_text() == "node,seconds_per_sample,up_mbps,down_mbps\n0,0.5,,2.0\n"


# properties

times = st.floats(0, 1e6).map(lambda time: round(time, 6))
rows = st.lists(times, unique=True, max_size=8).map(sorted).map(lambda own: tuple(zip(own[::2], own[1::2])))
rates = st.none() | st.floats(1e-6, 1e6)
devices = st.builds(Device, st.floats(1e-9, 1e6), rates, rates)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("# period_s: 5\n# period_s: 9\n" + HEAD + "0,1,2\n", "a.csv, line 2: period_s is there twice"),
        ("# nodes: 1\n" + HEAD + "0,1,2\n# nodes: 2\n", "a.csv, line 4: nodes is there twice"),
        ("# period: 5\n" + HEAD + "0,1,2\n", "a.csv, line 1: # period : sets nothing"),
        ("# Period_s: 5\n" + HEAD + "0,1,2\n", "a.csv, line 1: # Period_s : sets nothing"),
        ("# period_s = 5\n" + HEAD + "0,1,2\n", "a.csv, line 1: # period_s = sets nothing"),
        ("# node: 5\n" + HEAD + "0,1,2\n", "a.csv, line 1: # node : sets nothing"),
    ],
)
def test_a_setting_counts_once_and_only_as_it_is_spelt(tmp_path, text, rule):
    assert refused(tmp_path, text) == rule


def test_other_comments_set_nothing(tmp_path):
    text = "# notes: from a survey\n# source = phones\n# period\n" + HEAD + "0,1,2\n"
    assert load(tmp_path, text) == Availability(2.0, (((1.0, 2.0),),))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"period_s": 5, "nodes": [[[0, 1]]], "period_s": 9}', "period_s"),
        ('{"nodes": [{"seconds_per_sample": 1, "seconds_per_sample": 2}]}', "seconds_per_sample"),
    ],
)
def test_a_key_of_json_counts_once(tmp_path, text, key):
    assert refused(tmp_path, text, "a.json") == f"a.json {key} is there twice"


@settings(max_examples=50, deadline=None)
@given(sessions=st.lists(rows, min_size=1, max_size=5).map(tuple), suffix=st.sampled_from(["csv", "json"]))
def test_availability_survives_a_round_trip(tmp_path_factory, sessions, suffix):
    trace = Availability(1e6, sessions)
    path = tmp_path_factory.getbasetemp() / f"trip.{suffix}"
    write(path, trace)
    assert read(path) == trace


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(devices, min_size=1, max_size=5).map(tuple), suffix=st.sampled_from(["csv", "json"]))
def test_capacity_survives_a_round_trip(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.getbasetemp() / f"trip.{suffix}"
    write(path, rows)
    assert read(path) == rows


words = st.sampled_from(
    ["0", "1", "2.5", "-1", "nan", "x", "", "node", "start_s", "end_s", "#", '"', "\x00", "1e999"]
)
lines = st.lists(st.lists(words, max_size=4).map(",".join), max_size=6)


@settings(max_examples=50, deadline=None)
@given(body=lines, head=st.sampled_from(["", HEAD, SPEEDS, "# period_s: 9\n" + HEAD]))
def test_any_text_is_a_trace_or_a_mistake(tmp_path_factory, body, head):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(head + "\n".join(body))
    trace = outcome(path)
    if isinstance(trace, str):
        assert trace.startswith("any.csv")
    elif isinstance(trace, Availability):
        for own in trace.sessions:
            flat = [time for session in own for time in session]
            assert flat == sorted(flat)
            assert all(0 <= time <= trace.period_s < math.inf for time in flat)
    else:
        assert all(0 < device.seconds_per_sample < math.inf for device in trace)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["nodes", "up_mbps"]), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(nodes=values, period=values, keep=st.booleans())
def test_any_json_is_a_trace_or_a_mistake(tmp_path_factory, nodes, period, keep):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"nodes": nodes, **({"period_s": period} if keep else {})}))
    trace = outcome(path)
    assert not isinstance(trace, str) or trace.startswith("any.json")
    assert trace


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["csv", "json"]))
def test_bytes_at_random_are_a_mistake(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadValue):
        read(path)


# generate and replay

GENERATORS = [
    {"name": "exponential", "online_s": 30.0, "offline_s": 10.0},
    {"name": "weibull", "online_s": 30.0, "offline_s": 60.0, "shape": 0.6},
    {"name": "diurnal", "low": 0.1, "high": 0.8, "period_s": 600.0, "step_s": 7.0},
]


def seen(make, watch, churn, nodes, until_s, seed=0):
    """What nodes do up to a time: who is online at the start, and the sorted events after it."""
    world = make(nx.empty_graph(nodes), start=True, seed=seed, churn=churn)
    start, events = [node.online for node in world.nodes], watch(world)
    world.clock.run(until=micros(until_s))
    return start, sorted(events)


@pytest.mark.parametrize("churn", GENERATORS, ids=lambda churn: churn["name"])
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_replayed_trace_is_what_was_generated(make, watch, tmp_path, churn, suffix):
    trace = generate(churn, 12, 600.0, seed=5)
    path = tmp_path / f"a.{suffix}"
    write(path, trace)
    again = generate({"name": "trace", "path": str(path)}, 12, 600.0, seed=99)
    assert again == trace == read(path)
    replayed = seen(make, watch, {"name": "trace", "path": str(path)}, 12, 600)
    assert replayed == seen(make, watch, churn, 12, 600, seed=5)
    assert len(replayed[1]) >= 12


@pytest.mark.parametrize(
    ("churn", "share"), [(GENERATORS[0], 3 / 4), (GENERATORS[1], 1 / 3), (GENERATORS[2], 0.45)]
)
def test_the_uptime_of_a_generated_trace(churn, share):
    # The mean of diurnal is that of a sine over whole periods: (0.1 + 0.8) / 2.
    trace = generate(churn, 300, 1200.0, seed=7)
    shares = [sum(end - start for start, end in own) / trace.period_s for own in trace.sessions]
    mean = sum(shares) / len(shares)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in shares) / (len(shares) - 1) / len(shares))
    assert abs(mean - share) < 4 * deviation
    assert deviation < 0.02


def test_the_documentation_shows_traces_that_can_be_read(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "traces.md").read_text(encoding="utf-8")
    blocks = {
        kind: body.partition("```")[0] for kind, body in (b.split("\n", 1) for b in text.split("```")[1::2])
    }
    csvs = [part.split("\n", 1)[1].partition("```")[0] for part in text.split("```csv")[1:]]
    first, second = (load(tmp_path, body) for body in csvs)
    assert first == load(tmp_path, blocks["json"], "a.json")
    assert second == (Device(0.012, 5.5, 20.0), Device(0.3))
