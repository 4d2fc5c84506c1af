"""Flower's records with deferred tensors inside: nothing is computed early, and bytes count as Flower counts them."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ValueNeeded
from fedsim.flower.lazy import LazyMetrics, TensorArray, together
from fedsim.flower.records import isolate, layout_of, npy_bytes, pack, unpack, wire_bytes
from fedsim.learn.deferred import Deferred

LAYOUT = [("weight", (2, 3)), ("bias", (2,)), ("scale", ())]
NUMBERS = np.arange(9, dtype=np.float32)


class Once:
    """A computation that notes when it is done, and with how many others."""

    batch = "once"

    def __init__(self, value, ran):
        self.value, self.ran = value, ran

    def run(self, calls, inputs):
        self.ran.append(len(calls))
        return [call.value for call in calls]


def lazy(value=None, ran=None):
    """A deferred value, by default the vector 0 … 8, and the list of group sizes in which it was computed."""
    ran = [] if ran is None else ran
    return Deferred(Once(torch.from_numpy(NUMBERS.copy()) if value is None else value, ran), {}), ran


def shapes():
    return st.lists(st.integers(0, 4), max_size=3).map(tuple)


# pack and unpack


def test_pack_and_unpack_give_the_same_deferred_back():
    vector, ran = lazy()
    assert unpack(pack(vector, LAYOUT)) is vector
    assert ran == []


def test_layout_of_a_packed_record():
    record = pack(Deferred.phantom(), LAYOUT, "float64")
    assert layout_of(record) == (LAYOUT, "float64")


def test_the_pieces_hold_the_numbers_in_order():
    record = pack(lazy()[0], LAYOUT)
    assert record["weight"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert record["bias"].numpy().tolist() == [6, 7]
    assert record["scale"].numpy().shape == ()
    assert float(record["scale"].numpy()) == 8


def test_a_copied_record_still_gives_its_vector_back():
    vector, ran = lazy()
    assert unpack(pack(vector, LAYOUT).copy()) is vector
    assert ran == []


def test_a_part_of_a_vector_is_not_the_vector():
    vector, _ = lazy()
    record = pack(vector, LAYOUT)
    del record["scale"]
    head = unpack(record)
    assert head is not vector
    assert head.value().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_tail_a_shuffle_and_a_mixture_are_not_the_vector():
    one, two = pack(lazy()[0], LAYOUT), pack(Deferred.known(torch.full((9,), 10.0)), LAYOUT)
    tail = ArrayRecord()
    tail["bias"], tail["scale"] = one["bias"], one["scale"]
    assert unpack(tail).value().tolist() == [6, 7, 8]
    shuffled = ArrayRecord()
    shuffled["bias"], shuffled["scale"], shuffled["weight"] = one["bias"], one["scale"], one["weight"]
    assert unpack(shuffled).value().tolist() == [6, 7, 8, 0, 1, 2, 3, 4, 5]
    mixture = one.copy()
    mixture["bias"] = two["bias"]
    assert unpack(mixture).value().tolist() == [0, 1, 2, 3, 4, 5, 10, 10, 8]


def test_foreign_arrays_become_one_vector_of_their_type():
    record = ArrayRecord([np.array([[1.0, 2.0]], dtype=np.float64), np.array([3.0], dtype=np.float64)])
    vector = unpack(record)
    assert vector.done
    assert vector.value().dtype == torch.float64
    assert vector.value().tolist() == [1, 2, 3]


def test_unpack_casts_when_asked_and_only_when_needed():
    vector, ran = lazy()
    assert unpack(pack(vector, LAYOUT), dtype=torch.float32) is vector
    doubled = unpack(pack(vector, LAYOUT), dtype=torch.float64)
    assert ran == []
    assert doubled.value().dtype == torch.float64
    single = unpack(ArrayRecord([np.array([0.1])]), dtype=torch.float32)
    assert single.value().dtype == torch.float32
    assert unpack(pack(Deferred.phantom(), LAYOUT, "float64"), dtype=torch.float32).is_phantom


# one array


def test_nothing_is_computed_until_numbers_are_read():
    vector, ran = lazy()
    record = pack(vector, LAYOUT)
    content = RecordDict({"arrays": record})
    array = record["weight"]
    assert (array.dtype, array.shape, array.stype) == ("float32", (2, 3), "numpy.ndarray")
    assert wire_bytes(isolate(content)) == wire_bytes(content)
    assert layout_of(record.copy())[0] == LAYOUT
    assert ran == []
    array.numpy()
    assert ran == [1]
    assert len(array.data) == npy_bytes((2, 3), "float32")
    assert ran == [1]


def test_data_computes_too():
    vector, ran = lazy()
    assert pack(vector, LAYOUT)["bias"].data == Array(np.array([6, 7], dtype=np.float32)).data
    assert ran == [1]


def test_numpy_is_a_private_copy():
    vector, _ = lazy()
    record = pack(vector, LAYOUT)
    mine = record["weight"].numpy()
    mine[:] = -1
    assert record["weight"].numpy()[0].tolist() == [0, 1, 2]
    assert vector.value().tolist() == NUMBERS.tolist()
    record["weight"].numpy().fill(9)
    assert record["weight"].data == Array(NUMBERS[:6].reshape(2, 3)).data


@pytest.mark.parametrize(
    ("field", "value"), [("data", b""), ("shape", (6,)), ("dtype", "float64"), ("stype", "x")]
)
def test_an_array_cannot_be_changed_in_place(field, value):
    array = pack(lazy()[0], LAYOUT)["weight"]
    with pytest.raises(TypeError, match="make a new"):
        setattr(array, field, value)


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(["float16", "float32", "float64"]))
def test_data_and_size_are_what_flower_makes_of_the_numbers(shape, dtype):
    numbers = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    array = TensorArray(Deferred.known(torch.from_numpy(numbers.reshape(-1))), 0, shape, dtype)
    plain = Array(numbers)
    assert array.data == plain.data
    assert npy_bytes(shape, dtype) == len(plain.data)
    assert (array.dtype, array.shape, array.stype) == (plain.dtype, plain.shape, plain.stype)
    back = np.load(io.BytesIO(array.data))
    assert back.shape == shape
    assert np.array_equal(back, numbers)


def test_a_deployment_gets_an_ordinary_array():
    record, plain = pack(lazy()[0], LAYOUT), Array(np.array([6, 7], dtype=np.float32))
    array = record["bias"]
    assert array.deflate() == plain.deflate()
    assert array.object_id == plain.object_id
    back = Array.inflate(array.deflate(), array.children)
    assert back.numpy().tolist() == [6, 7]
    whole = ArrayRecord.inflate(record.deflate(), record.children)
    assert [name for name in whole] == ["weight", "bias", "scale"]
    assert unpack(whole).value().tolist() == NUMBERS.tolist()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_duplicate_is_an_ordinary_array(duplicate):
    array = pack(lazy()[0], LAYOUT)["bias"]
    twin = duplicate(array)
    assert type(twin) is Array
    assert twin.data == array.data
    twin.data = b"changed"
    assert array.numpy().tolist() == [6, 7]


def test_a_phantom_reads_as_zeros_and_weighs_the_same():
    record = pack(Deferred.phantom(), LAYOUT)
    assert record["weight"].numpy().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert record["weight"].numpy().dtype == np.float32
    real = pack(lazy()[0], LAYOUT)
    assert wire_bytes(RecordDict({"arrays": record})) == wire_bytes(RecordDict({"arrays": real}))
    assert len(record["weight"].data) == len(real["weight"].data)
    with pytest.raises(ValueNeeded):
        unpack(record).value()


# metrics


def metrics(known=None, **values):
    ran: list[int] = []
    deferred, _ = lazy({name: torch.tensor(value) for name, value in values.items()}, ran)
    return LazyMetrics({"num-examples": 7} if known is None else known, deferred, tuple(values)), ran


def test_known_metrics_are_read_without_computing():
    record, ran = metrics(loss=0.5)
    assert record["num-examples"] == 7
    assert sorted(record) == ["loss", "num-examples"]
    assert "loss" in record
    assert len(record) == 2
    assert wire_bytes(RecordDict({"metrics": record})) == 7 + (8 + 4) + (8 + 12)
    assert ran == []


@pytest.mark.parametrize(
    "read",
    [
        lambda r: r["loss"],
        lambda r: r.get("loss"),
        lambda r: next(value for key, value in r.items() if key == "loss"),
        lambda r: min(r.values()),
        lambda r: dict(r)["loss"],
        lambda r: r.pop("loss"),
        lambda r: r.copy()["loss"],
        lambda r: copy.copy(r)["loss"],
        lambda r: copy.deepcopy(r)["loss"],
        lambda r: pickle.loads(pickle.dumps(r))["loss"],
        lambda r: float(repr(r).split("'loss': ")[1].split(",")[0]),
    ],
)
def test_any_way_of_reading_computes_once(read):
    record, ran = metrics(loss=0.5)
    assert read(record) == 0.5
    assert ran == [1]


def test_metrics_are_compared_by_their_numbers():
    record, _ = metrics(loss=0.5)
    assert record == {"loss": 0.5, "num-examples": 7}
    one, two = metrics(loss=0.5)[0], metrics(loss=0.25)[0]
    assert one != two
    assert one == metrics(loss=0.5)[0]


def test_a_metric_that_was_set_or_deleted_stays_so():
    record, _ = metrics(loss=0.5, accuracy=0.75)
    record["loss"] = 9.0
    assert record["accuracy"] == 0.75
    assert record["loss"] == 9.0
    record, _ = metrics(loss=0.5, accuracy=0.75)
    del record["loss"]
    assert record["accuracy"] == 0.75
    assert "loss" not in record
    assert dict(record.items()) == {"accuracy": 0.75, "num-examples": 7}


def test_a_deployment_gets_an_ordinary_metric_record():
    record, _ = metrics(loss=0.5)
    plain = MetricRecord({"loss": 0.5, "num-examples": 7})
    assert MetricRecord.inflate(record.deflate()) == plain
    assert record.object_id == plain.object_id
    assert record.count_bytes() == plain.count_bytes()


def test_a_copy_is_as_lazy():
    record, ran = metrics(loss=0.5)
    twin = record.copy()
    assert list(twin) == list(record)
    assert ran == []
    assert twin["loss"] == record["loss"] == 0.5
    assert ran == [1]


def test_a_failure_is_reported_every_time():
    class Broken:
        batch = None

        def run(self, calls, inputs):
            raise ArithmeticError("NaN")

    record = LazyMetrics({}, Deferred(Broken(), {}), ("loss",))
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="NaN"):
            record["loss"]


def test_phantom_metrics_read_as_zero():
    record = LazyMetrics({"num-examples": 7}, Deferred.phantom(), ("loss", "accuracy"))
    assert dict(record.items()) == {"loss": 0.0, "accuracy": 0.0, "num-examples": 7}


# what is read together is computed together


def reply(ran, loss=0.5):
    vector, _ = lazy(None, ran)
    deferred, _ = lazy({"loss": torch.tensor(loss)}, ran)
    return RecordDict({"arrays": pack(vector, LAYOUT), "metrics": LazyMetrics({}, deferred, ("loss",))})


@pytest.mark.parametrize("read", [lambda c: c["arrays"]["bias"].numpy(), lambda c: c["metrics"]["loss"]])
def test_reading_one_message_computes_all_of_its_group_at_once(read):
    ran: list[int] = []
    contents = [reply(ran) for _ in range(3)]
    together(contents)
    assert ran == []
    read(contents[1])
    assert ran == [6]  # three vectors and three dictionaries of metrics
    assert [c["metrics"]["loss"] for c in contents] == [0.5] * 3
    assert contents[2]["arrays"]["scale"].numpy() == 8
    assert ran == [6]


def test_without_a_group_each_is_computed_alone():
    ran: list[int] = []
    contents = [reply(ran) for _ in range(3)]
    for content in contents:
        content["arrays"]["bias"].numpy()
    assert ran == [1, 1, 1]


# bytes


def real_bytes(content):
    """Count what would be serialised, reading everything."""
    total = 0
    for name, record in content.items():
        total += len(name)
        for key, value in record.items():
            total += len(key)
            if isinstance(value, Array):
                total += len(value.data)
            elif isinstance(value, list):
                total += sum(len(v) if isinstance(v, str | bytes) else 8 for v in value)
            elif isinstance(value, str | bytes):
                total += len(value)
            else:
                total += 1 if isinstance(value, bool) else 8
    return total


def test_wire_bytes_by_hand():
    content = RecordDict(
        {
            "arrays": pack(Deferred.phantom(), [("w", (100,))]),  # 6 + 1 + 128 + 400
            "config": ConfigRecord({"server-round": 3, "mode": "fast"}),  # 6 + 12 + 8 + 4 + 4
        }
    )
    assert wire_bytes(content) == 535 + 34


@settings(max_examples=30, deadline=None)
@given(
    st.lists(shapes(), min_size=1, max_size=4),
    st.sampled_from(["float16", "float32", "float64"]),
    st.dictionaries(
        st.text(st.characters(codec="ascii"), min_size=1, max_size=9), st.floats(0, 1), max_size=3
    ),
    st.lists(st.integers(0, 9), max_size=4),
    st.binary(max_size=20),
)
def test_wire_bytes_are_the_serialised_lengths(layout, dtype, numbers, integers, blob):
    named = [(f"p{i}", shape) for i, shape in enumerate(layout)]
    size = sum(int(np.prod(shape)) for shape in layout)
    vector, ran = lazy(torch.zeros(size, dtype=getattr(torch, dtype)))
    content = RecordDict(
        {
            "arrays": pack(vector, named, dtype),
            "plain": ArrayRecord([np.zeros(shape, dtype=np.int64) for shape in layout]),
            "metrics": MetricRecord({**numbers, "all": integers}),
            "config": ConfigRecord({"blob": blob, "flag": True, "text": "abc"}),
        }
    )
    counted = wire_bytes(content)
    assert ran == []
    assert counted == real_bytes(content)
    assert counted == wire_bytes(isolate(content))


# isolation


def content():
    record, _ = metrics(loss=0.5)
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.array([1.0, 2.0], dtype=np.float32))}),
            "packed": pack(lazy()[0], LAYOUT),
            "mixed": ArrayRecord([np.array([1, 2]), np.array([1.0])]),
            "config": ConfigRecord({"lr": 0.1, "ids": [1, 2]}),
            "metrics": MetricRecord({"n": 3, "losses": [0.5, 0.25]}),
            "lazy": record,
        }
    )


def vandalise(records):
    records["arrays"]["w"] = Array(np.array([-9.0]))
    del records["packed"]["bias"]
    records["mixed"]["0"].data = b"gone"
    records["mixed"]["1"].shape = (7, 7)
    records["config"]["lr"] = 99.0
    records["config"]["ids"].append(3)
    records["metrics"]["n"] = -1
    records["metrics"]["losses"].clear()
    records["lazy"]["loss"] = 77.0
    records["new"] = ConfigRecord({})


def assert_untouched(records):
    assert list(records) == ["arrays", "packed", "mixed", "config", "metrics", "lazy"]
    assert records["arrays"]["w"].numpy().tolist() == [1, 2]
    assert records["packed"]["bias"].numpy().tolist() == [6, 7]
    assert records["mixed"]["0"].numpy().tolist() == [1, 2]
    assert records["mixed"]["1"].shape == (1,)
    assert records["config"] == {"lr": 0.1, "ids": [1, 2]}
    assert records["metrics"] == {"n": 3, "losses": [0.5, 0.25]}
    assert records["lazy"]["loss"] == 0.5


def test_the_receiver_cannot_change_what_the_sender_holds():
    sent = content()
    vandalise(isolate(sent))
    assert_untouched(sent)


def test_the_sender_cannot_change_what_is_on_its_way():
    sent = content()
    received = isolate(sent)
    vandalise(sent)
    assert_untouched(received)


def test_receivers_of_one_message_cannot_change_one_anothers():
    sent, lifted = content(), {}
    first, second = isolate(sent, lifted), isolate(sent, lifted)
    vandalise(first)
    assert_untouched(second)
    assert_untouched(sent)


def test_messages_of_one_round_share_their_vector():
    arrays, lifted = ArrayRecord([np.array([1.0], dtype=np.float32)]), {}
    first = isolate(RecordDict({"arrays": arrays}), lifted)
    second = isolate(RecordDict({"arrays": arrays}), lifted)
    assert unpack(first["arrays"]) is unpack(second["arrays"])
    assert unpack(isolate(RecordDict({"arrays": arrays}))["arrays"]) is not unpack(first["arrays"])


def test_a_packed_vector_crosses_without_being_computed():
    vector, ran = lazy()
    received = isolate(RecordDict({"arrays": pack(vector, LAYOUT)}))
    assert unpack(received["arrays"]) is vector
    assert ran == []


def test_empty_records_cross_too():
    received = isolate(RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()}))
    assert list(received) == ["arrays", "config"]
    assert len(received["arrays"]) == 0
    assert wire_bytes(received) == 12


def test_text_is_counted_in_bytes():
    """Twelve bytes for the text, two for each letter; three for each of the names."""
    assert wire_bytes(RecordDict({"né": ConfigRecord({"kö": "ääääää"})})) == 12 + 3 + 3
