"""A session binds Flower's globals to a simulated run and puts everything back, whatever happens."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy, strategy_utils
from flwr.supercore.task_identity import TaskIdentity

from fedsim.flower import compat
from fedsim.flower.apps import legacy

IDENTITY = ("_run_id", "_task_id", "_node_id")


def ignore(seconds):
    raise AssertionError(f"nobody sleeps here ({seconds} s)")


def snapshot():
    return {
        "random": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "identity": [getattr(TaskIdentity, name) for name in IDENTITY],
        "sleep": strategy_utils.sleep,
        "level": logging.getLogger("flwr").level,
        "frozen": gc.get_freeze_count(),
    }


@pytest.fixture
def outside():
    """The world before a session, with telling values."""
    logger, level = logging.getLogger("flwr"), logging.getLogger("flwr").level
    before = [getattr(TaskIdentity, name) for name in IDENTITY]
    random.seed(123)
    np.random.seed(123)
    logger.setLevel(logging.INFO)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 91, 92, 93
    yield snapshot()
    logger.setLevel(level)
    for name, value in zip(IDENTITY, before):
        setattr(TaskIdentity, name, value)


def disturb():
    random.random()
    np.random.rand(5)
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.node_id = 4


def test_a_session_puts_everything_back(outside):
    with compat.session(7, 3, ignore):
        disturb()
    assert snapshot() == outside


def test_a_session_puts_everything_back_after_an_exception(outside):
    def fail():
        with compat.session(7, 3, ignore):
            disturb()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot() == outside


def test_sessions_can_be_nested(outside):
    with compat.session(7, 3, ignore):
        random.random()
        inside = snapshot()
        with compat.session(8, 5, print):
            disturb()
            assert strategy_utils.sleep is print
        after = snapshot()
        assert {key: after[key] for key in after if key != "frozen"} == {
            key: inside[key] for key in inside if key != "frozen"
        }
        assert TaskIdentity.node_id == 3
    assert snapshot() == outside


def test_an_identity_that_was_never_set_stays_unset():
    before = {name: getattr(TaskIdentity, name) for name in IDENTITY}
    try:
        for name in IDENTITY:
            setattr(TaskIdentity, name, None)
        with compat.session(7, 3, ignore):
            assert TaskIdentity.run_id == compat.RUN_ID
        with pytest.raises(RuntimeError, match="not set"):
            Message(RecordDict(), 1, "train")
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def test_inside_messages_come_from_the_server():
    with compat.session(7, 42, ignore):
        message = Message(RecordDict(), 1, "train")
    assert message.metadata.src_node_id == 42
    assert message.metadata.run_id == compat.RUN_ID


def draws(seed):
    with compat.session(seed, 0, ignore):
        return [random.random(), float(np.random.rand()), random.sample(range(100), 5)]


def test_the_global_generators_follow_from_the_seed():
    assert draws(7) == draws(7)
    one, other = draws(7), draws(8)
    assert all(a != b for a, b in zip(one, other))


def test_strategies_sleep_in_simulated_time():
    slept = []

    class Grid:
        def get_node_ids(self):
            return range(len(slept))

    with compat.session(7, 0, slept.append):
        _, ids = strategy_utils.sample_nodes(Grid(), 3, 0)
    assert ids == [0, 1, 2]
    assert slept == [1, 1, 1]


def test_flower_does_not_chatter(caplog):
    logger = logging.getLogger("flwr")
    with compat.session(7, 0, ignore):
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)


def test_an_apps_own_warnings_are_heard():
    logger = logging.getLogger("flwr")
    with compat.session(7, 0, ignore, logging.WARNING):
        assert logger.isEnabledFor(logging.WARNING)
        assert not logger.isEnabledFor(logging.INFO)


def test_what_existed_before_is_not_collected_over_and_over():
    gc.unfreeze()
    with compat.session(7, 0, ignore):
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_name_message_stamps_id_sender_and_run():
    with compat.session(7, 0, ignore):
        message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 5, "train.anchor", group_id="g")
    compat.name_message(message, "17", 9)
    data = message.metadata
    assert (data.message_id, data.src_node_id, data.dst_node_id, data.run_id) == ("17", 9, 5, compat.RUN_ID)
    assert (data.message_type, data.group_id) == ("train.anchor", "g")
    reply = Message(Error(compat.NODE_UNAVAILABLE, "gone"), reply_to=message)
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == ("17", 9)


def test_an_offline_node_has_flowers_own_error_code():
    assert compat.NODE_UNAVAILABLE == 5


def test_the_run_has_its_id():
    assert compat.make_run().run_id == compat.RUN_ID


# users' apps


def test_a_client_has_generators_of_its_own():
    random.seed(1)
    np.random.seed(1)
    torch.default_generator.manual_seed(1)

    def draw():
        return random.random(), np.random.random(), float(torch.rand(()))

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with compat.Client(4, 17):
        first = draw()
        assert TaskIdentity.node_id == 4
    with compat.Client(5, 17):
        second = draw()
    with compat.Client(5, 18):
        third = draw()
    assert first == second != third
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def draw():
    return random.random(), float(np.random.normal()), float(torch.rand(()))


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def visit(key):
    with compat.Client(4, key):
        return draw()


def test_the_servers_generators_are_restored_when_it_goes_on():
    spare = np.random.MT19937(0)
    seed_all(1)
    before, own = states(), np.random.get_bit_generator()
    alone = [visit(key) for key in (17, 18)]
    assert states() == before
    with compat.undisturbed(spare):
        assert [visit(key) for key in (17, 18)] == alone
        assert np.random.get_bit_generator() is spare
    assert states() == before
    assert np.random.get_bit_generator() is own
    again = draw()
    seed_all(1)
    assert draw() == again


def test_the_servers_generators_are_restored_after_an_exception():
    def fail():
        with compat.undisturbed(np.random.MT19937(0)):
            visit(17)
            raise ZeroDivisionError

    seed_all(1)
    before, own = states(), np.random.get_bit_generator()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert states() == before
    assert np.random.get_bit_generator() is own
    with compat.Client(4, 17):  # no wait any more: each visit restores by itself
        draw()
    assert states() == before


@pytest.mark.parametrize("keys", [(), (17,), (17, 18)])
def test_half_a_pair_of_normal_numbers_is_forgotten_whoever_works(keys):
    np.random.seed(1)
    np.random.normal(size=2)
    third = np.random.normal()
    np.random.seed(1)
    np.random.normal()  # NumPy makes two at a time
    with compat.undisturbed(np.random.MT19937(0)):
        for key in keys:
            visit(key)
    assert np.random.normal() == third


def test_a_servers_sleep_passes_simulated_time_and_a_clients_does_not():
    paused, real = [], time.sleep
    server = threading.get_ident()
    with compat.slow_time(paused.append, lambda: threading.get_ident() == server and not compat.in_client()):
        from time import sleep

        time.sleep(100.0)
        with compat.Client(0, 1):
            time.sleep(0.0)
        thread = threading.Thread(target=time.sleep, args=(0.0,))
        thread.start()
        thread.join()
        sleep(7)
    assert paused == [100.0, 7]
    assert time.sleep is real
    sleep(0.0)  # what was imported meanwhile sleeps as usual again
    assert paused == [100.0, 7]


def test_a_server_waits_for_other_processes_in_real_time():
    """How long they take is another number in every run."""
    paused = []
    with compat.slow_time(paused.append, lambda: True):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"], timeout=60, check=True)
    assert paused == []


class Two:
    """A grid without clients."""

    def send_and_receive(self, messages, timeout=None):
        return []

    def get_node_ids(self):
        return [0, 1]


def test_a_strategy_is_watched_and_left_as_it_was():
    arrays, metrics = [], []
    start = ArrayRecord({"w": Array(np.zeros(2))})
    strategy = FedAvg(fraction_evaluate=0.0)
    before = Strategy.start
    with (
        compat.session(0, 2, lambda _: None),
        compat.observed(arrays.append, lambda *one: metrics.append(one), lambda *one: None),
    ):
        strategy.start(
            Two(), start, 2, evaluate_fn=lambda round, _: MetricRecord({"loss": 1.0}) if round else None
        )
    assert Strategy.start is before
    assert "aggregate_train" not in vars(strategy)
    assert arrays == [start]  # nobody has replied, so nothing was aggregated
    assert metrics == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]


def test_what_the_former_api_does_is_put_back():
    from flwr.server import server
    from flwr.server.client_manager import SimpleClientManager

    def now():
        return (
            server.Server.fit,
            server.fit_clients,
            server.evaluate_clients,
            SimpleClientManager.wait_for,
        )

    before = now()
    with legacy.together(Two(), lambda _: None, lambda _: None, lambda *_: None, lambda *_: None):
        assert not set(before) & set(now())
        assert server.fit_clients([], max_workers=None, timeout=None, group_id=1) == ([], [])
    assert now() == before


def test_a_context_begins_with_an_empty_state():
    context = compat.make_context(3, {"partition-id": 3}, {"lr": 0.1})
    assert (context.node_id, context.node_config, context.run_config) == (3, {"partition-id": 3}, {"lr": 0.1})
    assert not context.state


def test_a_reply_is_the_one_that_flower_makes():
    """All that it says of itself, except for when it was made."""
    with compat.session(0, 9, lambda _: None):
        asked = Message(RecordDict(), 3, "train.own", ttl=50.0, group_id="g")
        compat.name_message(asked, "7", 9)
        got = compat.delivered(asked, RecordDict())
        mine, theirs = compat.answered(got, "7-reply", 3, RecordDict()), Message(RecordDict(), reply_to=got)
        compat.name_message(theirs, "7-reply", 3)
    one, two = ({**vars(message.metadata)} for message in (mine, theirs))
    times = [(about.pop("_created_at"), about.pop("_ttl")) for about in (one, two)]
    assert one == two
    assert all(created + ttl == pytest.approx(asked.metadata.created_at + 50.0) for created, ttl in times)
    assert (mine.has_content(), mine.has_error()) == (True, False)


def test_what_is_delivered_has_containers_of_its_own():
    with compat.session(0, 9, lambda _: None):
        asked = Message(RecordDict(), 3, "train")
        got = compat.delivered(asked, RecordDict({"c": ConfigRecord({"a": 1})}))
    got.metadata.message_type = "query"
    assert asked.metadata.message_type == "train"
    assert not asked.content
    assert asked.metadata.delivered_at == ""
