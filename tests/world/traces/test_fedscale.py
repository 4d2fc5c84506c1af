from __future__ import annotations

import collections
import os
import pickle
import pickletools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from fedsim.world.clock import micros
from fedsim.world.traces.fedscale import read_fedscale
from fedsim.world.traces.files import Availability, Device, read, write

MICRO = {
    "duration": 10,
    "inactive": [1, 4, 7, 10],
    "finish_time": 10,
    "active": [1, 3, 6, 9],
    "model": "phone",
}


def save(tmp_path, data, protocol=4, name="trace"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, protocol))
    return path


def refused(path):
    with pytest.raises(BadValue) as caught:
        read_fedscale(path)
    assert (caught.value.key, caught.value.value) == ("path", str(path))
    assert caught.value.rule.startswith(path.name)
    return caught.value.rule


def client(active, inactive, finish_time=10):
    return {"duration": 1, "inactive": inactive, "finish_time": finish_time, "active": active, "model": "x"}


def sessions(tmp_path, active, inactive, finish_time=10):
    trace = read_fedscale(save(tmp_path, {1: client(active, inactive, finish_time)}))
    assert trace.period_s == finish_time
    return trace.sessions[0]


# what is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_capacity(tmp_path, protocol):
    # 40 ms for a forward pass are 3 x 0.040 = 0.12 s for a gradient; 2500 kbit/s are 2.5 Mbit/s.
    data = {2: {"computation": 40, "communication": 2500.0}, 1: {"computation": 10.5, "communication": 800}}
    assert read_fedscale(save(tmp_path, data, protocol)) == (
        Device(pytest.approx(0.0315), 0.8, 0.8),
        Device(pytest.approx(0.12), 2.5, 2.5),
    )


def test_ids_are_ordered_as_numbers_or_as_text(tmp_path):
    data = {id: {"computation": id, "communication": 1} for id in (10, 9, 2)}
    assert [d.seconds_per_sample for d in read_fedscale(save(tmp_path, data))] == [0.006, 0.027, 0.03]
    named = {"b": {"computation": 2, "communication": 1}, "a": {"computation": 1, "communication": 1}}
    assert [d.seconds_per_sample for d in read_fedscale(save(tmp_path, named))] == [0.003, 0.006]


@pytest.mark.parametrize(
    "ids",
    [
        [
            "2",
            "10",
            "9999999999999999",
            "10000000000000000",
            "10000000000000001",
        ],  # beyond 2^53, floats are equal
        ["-3", 1, "2", 2.5, "3", 4, "10", "a", "b"],
        ["client_2", "client_10", "client_10_b2", "client_10_b11", "phone"],
    ],
)
def test_ids_that_are_text_are_in_their_natural_order(tmp_path, ids):
    data = {id: {"computation": 1 + place, "communication": 1} for place, id in enumerate(ids)}
    shuffled = {id: data[id] for id in sorted(data, key=str)}
    read = read_fedscale(save(tmp_path, shuffled))
    assert [d.seconds_per_sample for d in read] == [3 * (1 + n) / 1000 for n in range(len(ids))]


def test_fedscales_own_small_trace(tmp_path, make):
    trace = read_fedscale(save(tmp_path, {1: MICRO}))
    assert trace == Availability(10.0, (((3.0, 4.0), (6.0, 7.0), (9.0, 10.0)),))
    path = tmp_path / "a.csv"
    write(path, trace)
    world = make(nx.empty_graph(1), start=True, churn={"name": "trace", "path": str(path)})
    online = []
    for second in range(20):
        world.clock.run(until=micros(second) + 1)
        online += [second] * world.nodes[0].online
    assert online == [3, 6, 9, 13, 16, 19]  # so at 6 and 9, and not at 2, 8, 10 and 15


@pytest.mark.parametrize(
    ("active", "inactive", "expected"),
    [
        ([0, 5], [2, 7], ((0, 2), (5, 7))),
        ([4], [2, 7], ((0, 2), (4, 7))),  # inactive first: online from the start
        ([4], [2], ((0, 2), (4, 10))),  # active at last: online until the end
        ([4], [], ((4, 10),)),
        ([], [3], ((0, 3),)),
        ([], [], ()),
        ([2, 12], [4, 14], ((2, 4),)),  # what lies after finish_time never happens
        ([8], [14], ((8, 10),)),
        ([12], [], ()),
        ((1, 5), (2, 6), ((1, 2), (5, 6))),
    ],
)
def test_sessions_are_between_active_and_inactive(tmp_path, active, inactive, expected):
    assert sessions(tmp_path, active, inactive) == expected


def test_shorter_traces_start_again_until_the_longest_ends(tmp_path):
    data = {1: client([1], [2], 10), 2: client([1], [2], 4), 3: client([0], [3], 6)}
    assert read_fedscale(save(tmp_path, data)) == Availability(
        10.0, (((1, 2),), ((1, 2), (5, 6), (9, 10)), ((0, 3), (6, 9)))
    )


def test_a_repetition_never_reaches_into_the_next(tmp_path):
    data = {1: client([0.0], [0.1], 0.1), 2: client([1.0], [2.0], 3.0)}
    trace = read_fedscale(save(tmp_path, data))
    write(tmp_path / "a.csv", trace)
    assert read(tmp_path / "a.csv") == trace
    assert sum(end - start for start, end in trace.sessions[0]) == pytest.approx(3.0)


# what is refused


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ([1, 2], "trace must be a dictionary with a dictionary for each client"),
        ({1: 2}, "trace must be a dictionary with a dictionary for each client"),
        ({}, "trace is empty: it has no client"),
        (
            {1: {"model": "x"}},
            "trace must give every client computation and communication, or active, inactive",
        ),
        (
            {1: MICRO, 2: {"computation": 1, "communication": 1}},
            "trace must give every client computation and",
        ),
        (
            {7: {"computation": 0, "communication": 1}},
            "trace, client 7: computation is 0, must be a number above 0 and at most 1e+12",
        ),
        ({7: {"computation": 1}}, "trace, client 7: communication is None, must be"),
        ({7: {"computation": "1", "communication": 1}}, "trace, client 7: computation is '1', must be"),
        ({7: {"computation": True, "communication": 1}}, "trace, client 7: computation is True, must be"),
        (
            {7: {"computation": float("nan"), "communication": 1}},
            "trace, client 7: computation is nan, must be",
        ),
        ({3: client([1], [2], 0)}, "trace, client 3: finish_time is 0, must be a number above 0"),
        ({3: client([1], [2], None)}, "trace, client 3: finish_time is None, must be"),
        ({3: client([-1], [2])}, "trace, client 3: active is -1, must be a number of at least 0"),
        ({3: client([1], [float("inf")])}, "trace, client 3: inactive is inf, must be"),
        ({3: client([1], 2)}, "trace, client 3: inactive is 2, must be a list of seconds"),
        ({3: client("12", [2])}, "trace, client 3: active is '12', must be a list of seconds"),
        ({3: client([1, 2], [3, 4])}, "trace, client 3: active and inactive must take turns and rise"),
        ({3: client([5, 1], [6, 2])}, "trace, client 3: active and inactive must take turns and rise"),
        ({3: client([1, 3, 5], [2])}, "trace, client 3: active and inactive must take turns and rise"),
        (
            {1: client([0], [1e-6], 1e-5), 2: client([1], [2], 1000)},
            "trace repeated until 1000 s, there are more than 10000000 sessions",
        ),
    ],
)
def test_what_is_wrong_in_a_pickle(tmp_path, data, rule):
    assert refused(save(tmp_path, data)).startswith(rule)


class Harm:
    """Pickles as a call of os.system, which leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, protocol):
    left = tmp_path / "harm"
    path = save(tmp_path, {1: {"computation": Harm(left), "communication": 1}}, protocol)
    assert refused(path).startswith(
        f"trace is not a pickle of plain data (it names {os.system.__module__}.system"
    )
    assert not left.exists()
    pickle.loads(path.read_bytes())  # the pickle does work: an ordinary unpickler would have run it
    assert left.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL and REDUCE
        b"(ios\nsystem\nS'true'\n.",  # INST: the arguments would come first
        b"(cbuiltins\neval\nS'1'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x82\x01.",  # an extension code
        b"Psomewhere\n.",  # a persistent id
        b"K\x01Q.",  # a persistent id from the stack
    ],
)
def test_every_way_out_of_plain_data_is_closed(tmp_path, content):
    assert "is not a pickle of plain data" in refused(save(tmp_path, content))


@pytest.mark.parametrize("data", [np.array([1.0]), np.float64(3), collections.OrderedDict(), range(3), len])
def test_even_harmless_objects_are_refused(tmp_path, data):
    assert "and only plain data are admitted" in refused(save(tmp_path, {1: data}))


def test_a_truncated_pickle_is_refused_with_its_name(tmp_path):
    whole = pickle.dumps({id: MICRO for id in range(20)})
    for size in range(0, len(whole), 7):
        assert refused(save(tmp_path, whole[:size])).startswith("trace is not a pickle of plain data (")
    assert len(read_fedscale(save(tmp_path, whole)).sessions) == 20


def test_a_promise_of_huge_data_is_refused(tmp_path):
    huge = b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x."
    assert next(op.name for op, *_ in pickletools.genops(b"\x80\x04.")) == "PROTO"
    assert "is not a pickle of plain data" in refused(save(tmp_path, huge))


def test_a_missing_file_is_refused(tmp_path):
    assert refused(tmp_path / "no") == "no cannot be read (No such file or directory)"
    assert refused(tmp_path).endswith("cannot be read (Is a directory)")


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=80), proper=st.booleans())
def test_bytes_at_random_are_refused(tmp_path_factory, content, proper):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(b"\x80\x04" * proper + content)
    refused(path)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner), max_leaves=6)
keys = st.sampled_from(["computation", "communication", "active", "inactive", "finish_time", "model"])


@settings(max_examples=50, deadline=None)
@given(
    data=st.dictionaries(st.integers(0, 5) | st.text(max_size=1), st.dictionaries(keys, nested), max_size=3)
)
def test_plain_data_are_a_trace_or_a_mistake(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "plain"
    path.write_bytes(pickle.dumps(data))
    try:
        trace = read_fedscale(path)
    except BadValue as error:
        trace = error.rule
    if isinstance(trace, str):
        assert trace.startswith("plain")
    else:
        write(path.with_suffix(".json"), trace)
        assert read(path.with_suffix(".json")) == trace
