"""Messages on shared memory."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.flower.apps.parcel import dumps, loads
from fedsim.flower.records import isolate, whole
from fedsim.learn.engines.desk import ALIGNED, Desk, reserve

SIZE = 2**20


@pytest.fixture(scope="module")
def path():
    made = reserve(SIZE)
    yield made
    os.unlink(made)


shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
dtypes = st.sampled_from(["float32", "float64", "int64", "uint8", "bool"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(shapes, dtypes), max_size=5),
    text=st.text(max_size=3000),
    data=st.binary(max_size=5000),
    isolated=st.booleans(),
    room=st.sampled_from([ALIGNED, 4096, SIZE]),
)
def test_whatever_goes_comes_back(path, pieces, text, data, isolated, room):
    """Also with too little room for all of it or any of it."""
    arrays = [np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype) for shape, dtype in pieces]
    content = RecordDict(
        {
            "arrays": ArrayRecord({f"a{i}": Array(array) for i, array in enumerate(arrays)}),
            "metrics": MetricRecord({"loss": 0.5, "of_class": [1, 2]}),
            "config": ConfigRecord({"text": text, "data": data, "both": [data, data]}),
        }
    )
    content = isolate(content) if isolated else content
    desk = Desk(path, 0, room)
    found = loads(dumps(content, desk), desk)
    desk.clear()
    desk.put_bytes(b"\xff" * room)  # what came back does not lie there any more
    assert found["metrics"] == content["metrics"]
    assert found["config"] == content["config"]
    assert list(found["arrays"]) == [f"a{i}" for i in range(len(arrays))]
    for array, back in zip(arrays, found["arrays"].values(), strict=True):
        assert back.numpy().dtype == array.dtype
        assert np.array_equal(back.numpy(), array)


def test_a_vector_stays_one_and_leaves_the_pickle_small(path):
    """250 kB of numbers, a pickle of less than 1 kB; two arrays on a desk that has room for both."""
    record = ArrayRecord({"w": Array(np.ones((250, 250), np.float32)), "b": Array(np.ones(10, np.float32))})
    content = isolate(RecordDict({"arrays": record}))
    assert whole(content["arrays"])
    assert not whole(record)
    desk = Desk(path, 0, SIZE)
    data = dumps(content, desk)
    assert len(data) < 1000
    assert whole(loads(data, desk)["arrays"])


def test_what_is_there_twice_is_laid_down_once(path):
    """Two records of 400 kB each would not fit on a desk of 500 kB, and one does."""
    content = isolate(RecordDict({"a": ArrayRecord({"w": Array(np.zeros(100_000, np.float32))})}))
    desk = Desk(path, 0, 500_032)
    assert len(dumps([content, content["a"].copy()], desk)) < 2000
    more = isolate(RecordDict({"a": ArrayRecord({"w": Array(np.ones(100_000, np.float32))})}))
    desk.clear()
    assert len(dumps([content, more], desk)) > 400_000


def test_bytes_that_are_made_on_the_way_are_not_taken_for_others(path):
    """An id is another value's as soon as the first one is gone."""

    class Made:
        def __init__(self, fill):
            self.fill = fill

        def __reduce__(self):
            return bytes, (bytes([self.fill]) * 2000,)

    desk = Desk(path, 0, SIZE)
    found = loads(dumps([Made(i) for i in range(20)], desk), desk)
    assert found == [bytes([i]) * 2000 for i in range(20)]


def test_a_vector_with_a_history_goes_as_ordinary_arrays(path):
    from fedsim.flower.records import pack
    from fedsim.learn.deferred import Deferred

    record = pack(Deferred.known(torch.ones(500, requires_grad=True)), [("w", (500,))])
    desk = Desk(path, 0, SIZE)
    back = loads(dumps(record, desk), desk)
    assert not whole(back)
    assert back["w"].numpy().tolist() == [1.0] * 500
