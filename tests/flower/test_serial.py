"""Records that are written as bytes come back as they were, and one that differs in anything has another digest."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsim.flower.records import TensorArray, isolate
from fedsim.flower.serial import digest, doubles, from_bytes, to_bytes, with_doubles

NAMES = st.text(max_size=5)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats()
METRICS = NUMBERS | st.lists(st.floats(), max_size=3)
CONFIGS = NUMBERS | st.booleans() | st.binary(max_size=5) | NAMES | st.lists(NAMES, max_size=3)
TYPES = st.sampled_from(["float32", "float64", "float16", "int64", "bool"])
ARRAYS = TYPES.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_side=3)))


def record(kind, values):
    return st.dictionaries(NAMES, values, max_size=3).map(kind)


CONTENTS = st.dictionaries(
    NAMES,
    record(lambda held: ArrayRecord({name: Array(one) for name, one in held.items()}), ARRAYS)
    | record(MetricRecord, METRICS)
    | record(ConfigRecord, CONFIGS),
    max_size=3,
).map(RecordDict)


def plain(content):
    """Return all that is in records, in their order, to the last bit."""
    return [
        (name, type(one).__name__, [(key, _plain(value)) for key, value in one.items()])
        for name, one in content.items()
    ]


def _plain(value):
    if isinstance(value, Array):
        number = value.numpy()
        return number.dtype.str, number.shape, number.tobytes()
    return repr(value)


@given(CONTENTS)
def test_records_come_back_to_the_last_bit(content):
    sent = isolate(content)
    found = from_bytes(to_bytes(sent))
    assert plain(found) == plain(content)
    assert digest(found) == digest(sent)
    assert digest(sent) == digest(isolate(content), {})


@given(CONTENTS, CONTENTS)
def test_other_records_have_another_digest(one, two):
    assert (digest(isolate(one)) == digest(isolate(two))) == (plain(one) == plain(two))


def test_a_vector_is_looked_at_once():
    """What several messages share is hashed for the first of them: the second takes what was found, right or wrong."""
    content = isolate(RecordDict({"a": ArrayRecord({"w": Array(np.arange(4.0, dtype=np.float32))})}))
    seen = {}
    first = digest(content, seen)
    assert digest(content, seen) == first
    ((key, (vector, _)),) = seen.items()
    seen[key] = vector, b"another one"
    assert digest(content, seen) != first
    assert isinstance(from_bytes(to_bytes(content))["a"]["w"], TensorArray)


def test_numbers_of_numpy_come_back_as_such():
    """Beside an array in float32, NumPy's number makes float64 of it, and Python's does not."""
    sent = RecordDict(
        {"m": MetricRecord({"a": np.float64(0.1), "b": 0.1, "c": [np.float64(1), np.float64(2)]})}
    )
    found = from_bytes(to_bytes(sent))
    assert type(found["m"]["a"]) is float
    found = with_doubles(found, doubles(sent))
    assert [type(found["m"][key]) for key in "ab"] == [np.float64, float]
    assert [type(one) for one in found["m"]["c"]] == [np.float64, np.float64]
    assert (found["m"]["a"] * np.ones(1, np.float32)).dtype == np.float64


def test_what_flower_cannot_send_is_refused():
    with pytest.raises(ValueError, match="out of range"):
        to_bytes(RecordDict({"m": MetricRecord({"a": 2**70})}))
