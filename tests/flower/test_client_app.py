"""Our strategies as Flower apps: the same weights as in a simulation, however the nodes are called."""

from __future__ import annotations

import pickle
import tomllib

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import load_file

import fedsim
from fedsim import parts
from fedsim.errors import BadValue, ConfigError, RunError, StalledError
from fedsim.flower import ByPartition, client_app, compat, run_app, server_side
from fedsim.flower.apps.project import read_project
from fedsim.flower.apps.worldfile import read_world
from fedsim.flower.deploy.template import write_app
from tests.learn.odd_models import Constants

LOCAL = {"epochs": 1, "batch_size": 64, "lr": 0.1}
STEPS = {"steps": 3, "batch_size": 32, "lr": 0.1}
ROWS = {
    "fedavg": {"fraction_evaluate": 0.5, "local": LOCAL},
    "fedprox": {"participants": 3, "mu": 0.1, "local": LOCAL},
    "fedamd": {"participants": 3, "p": 0.5, "local": STEPS},
    "scaffold": {"participants": 3, "local": LOCAL},
    "feddyn": {"participants": 3, "local": LOCAL},
    "ditto": {"participants": 3, "lam": 0.5, "local": LOCAL},
}


@pytest.fixture
def session():
    with compat.session(0, 99, lambda _: None):
        yield


def written(folder, name, extra=None, model="softmax"):
    """Return an app that was generated from an experiment file, and that experiment."""
    experiment = {
        "seed": 5,
        "data": {"name": "digits", "clients": 4, "partition": {"name": "dirichlet", "alpha": 1.0}},
        "model": model,
        "strategy": {"name": name, **ROWS[name], **(extra or {})},
        "stop": {"rounds": 3},
        "compute": {"engine": "sequential", "device": "cpu"},
        "record": {"report": False},
    }
    file = folder / "given.yaml"
    file.write_text(yaml.safe_dump(experiment))
    write_app(folder / "app", experiment=file)
    return folder / "app", experiment


@pytest.mark.parametrize("name", ROWS)
def test_an_app_gives_the_weights_of_the_experiment(name, tmp_path):
    app, experiment = written(tmp_path, name)
    direct = fedsim.run(experiment, out=tmp_path / "runs")
    world = {"record.report": False, "seed": 5}
    through = run_app(app, nodes=4, overrides=world, out=tmp_path / "runs")
    assert through.summary["rounds"] == 3
    if name == "fedavg":  # Flower draws its cohorts from the global generator, which queries do not disturb
        assert direct.summary["weights_hash"] == through.summary["weights_hash"]
    wanted, found = direct.weights(), through.weights()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])
    assert through.summary["accuracy"] == pytest.approx(direct.summary["accuracy"])


@pytest.mark.parametrize(
    ("name", "own"), [("fedper", {}), ("fedrep", {"head_steps": 2, "kept": ["3.bias", 1]})]
)
def test_what_stays_with_clients_never_leaves_them(name, own, tmp_path):
    ROWS[name] = {"participants": 3, "local": LOCAL, **own}
    app, experiment = written(tmp_path, name, model={"name": "mlp", "hidden": 8})
    direct = fedsim.run(experiment, out=tmp_path / "runs")
    through = run_app(app, nodes=4, overrides={"record.report": False, "seed": 5}, out=tmp_path / "runs")
    wanted, found = direct.weights(), through.weights()
    assert list(found) == (["1.weight", "1.bias"] if name == "fedper" else ["3.weight"])
    for key in found:
        np.testing.assert_array_equal(found[key], wanted[key])
    # a client that has been visited goes on with what it has kept: else three rounds would end elsewhere
    assert through.summary["rounds"] == 3
    half = server_side(model=experiment["model"], data="digits", strategy=experiment["strategy"], clients=4)
    assert dict(half.evaluate(1, half.arrays)) == {}
    half.save(half.arrays, tmp_path / "saved")
    assert sorted(load_file(tmp_path / "saved")) == sorted(found)  # nobody there knows what clients keep


def test_what_a_model_draws_is_the_same_in_an_app(tmp_path):
    experiment = {
        "seed": 3,
        "data": {"name": "tests.learn.odd_models:points", "clients": 3},
        "model": "tests.learn.odd_models:FunctionalDropout",
        "strategy": {
            "name": "fedprox",
            "participants": 2,
            "mu": 0.1,
            "local": {"epochs": 2, "batch_size": 3, "lr": 0.1},
        },
        "stop": {"rounds": 3},
        "compute": {"device": "cpu"},
        "record": {"report": False},
    }
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(experiment))
    write_app(tmp_path / "app", experiment=file)
    direct = fedsim.run(experiment, out=tmp_path / "runs")
    torch.rand(7)
    through = run_app(tmp_path / "app", nodes=3, overrides={"record.report": False}, out=tmp_path / "runs")
    wanted, found = direct.weights(), through.weights()
    assert wanted.keys() == found.keys()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])


def test_a_deployed_server_saves_what_is_frozen_and_constant(tmp_path):
    blocks = {"data": "tests.learn.odd_models:points", "model": "tests.learn.odd_models:Constants"}
    half = server_side(**blocks, strategy="fedavg", clients=3)
    assert list(half.arrays) == ["last.weight", "last.bias"]  # what is sent
    half.save(half.arrays, tmp_path / "model.safetensors")
    weights = {k: torch.from_numpy(v) for k, v in load_file(tmp_path / "model.safetensors").items()}
    module = Constants()
    module.load_state_dict(weights, strict=True)
    task, x = half.learner.engine.task, half.learner.x_test
    torch.testing.assert_close(module(x), task.predict(task.initial, x))


@pytest.mark.parametrize(
    "transform",
    [{"name": "top_k", "share": 0.1}, {"name": "quantise", "bits": 8}, {"name": "clip", "max_norm": 0.5}],
)
def test_transforms_give_the_same_in_an_app(transform, tmp_path):
    app, experiment = written(tmp_path, "fedprox", {"around": [transform]})
    direct = fedsim.run(experiment, out=tmp_path / "runs")
    through = run_app(app, nodes=4, overrides={"record.report": False}, out=tmp_path / "runs")
    wanted, found = direct.weights(), through.weights()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])
    queries = through.summary["bytes_up"] - direct.summary["bytes_up"]
    assert 0 < queries < 4 * 2 * 200  # apart from them, as many bytes as the simulation counts


def test_what_a_client_keeps_is_in_its_state(session):
    """A client that is made anew for every message goes on where the last one stopped."""
    blocks = {"model": "softmax", "data": "digits", "strategy": {"name": "feddyn", **ROWS["feddyn"]}}
    half = server_side(**blocks, clients=4)

    def visit(app, context, round):
        content = RecordDict({"arrays": half.arrays, "config": ConfigRecord({"server-round": round})})
        return app(Message(content, 7, "train"), context).content

    def place():
        return compat.make_context(7, {"partition-id": 1, "num-partitions": 4}, {})

    steady, fresh, forgetful = client_app(**blocks), place(), place()
    kept = place()
    for round in (1, 2):
        by_one = visit(steady, kept, round)
        by_many = visit(client_app(**blocks), fresh, round)
    visit(client_app(**blocks), place(), 1)
    forgotten = visit(client_app(**blocks), forgetful, 2)
    same = [by_one["arrays"][key].data == by_many["arrays"][key].data for key in by_one["arrays"]]
    assert same == [True] * len(same)
    assert by_one["arrays"]["1.weight"].data != forgotten["arrays"]["1.weight"].data
    assert list(fresh.state) == list(kept.state)


def test_a_second_visit_in_a_round_has_other_batches(session):
    blocks = {"model": "softmax", "data": "digits", "strategy": {"name": "fedavg", **ROWS["fedavg"]}}
    half, context = (
        server_side(**blocks, clients=4),
        compat.make_context(3, {"partition-id": 0, "num-partitions": 4}, {}),
    )
    content = RecordDict({"arrays": half.arrays, "config": ConfigRecord({"server-round": 1})})
    first, second = (
        client_app(**blocks)(Message(content, 3, "train"), context).content["arrays"]["1.weight"].data
        for _ in range(2)
    )
    assert first != second


def test_the_apps_answers(session):
    blocks = {"model": "softmax", "data": "digits", "strategy": {"name": "fedavg", **ROWS["fedavg"]}}
    app, context = client_app(**blocks), compat.make_context(3, {"partition-id": 2, "num-partitions": 4}, {})
    arrays = server_side(**blocks, clients=4).arrays

    def ask(kind, content=None):
        return app(Message(content or RecordDict({"arrays": arrays}), 3, kind), context).content

    assert ask("query.partition").config_records["node"]["partition-id"] == 2
    assert ask("query.size")["metrics"]["num-examples"] > 100
    scores = ask("evaluate")["metrics"]
    assert scores["loss"] == pytest.approx(np.log(10), abs=0.5)
    with pytest.raises(ValueError, match="No query function registered"):
        ask("query.hello")

    @app.query("hello")
    def hello(message, context):
        return Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=message)

    assert ask("query.hello")["m"]["x"] == 1


@pytest.mark.parametrize("config", [{}, {"partition-id": 2, "num-partitions": 2}, {"partition-id": 0}])
def test_a_node_must_know_its_place(config, session):
    app = client_app(model="softmax", data="digits", strategy="fedavg")
    with pytest.raises(BadValue, match="must be at least 0 and less than num-partitions"):
        app(Message(RecordDict(), 3, "train"), compat.make_context(3, config, {}))


def test_peers_cannot_run_in_flower():
    with pytest.raises(BadValue, match="has peers and no server"):
        server_side(model="softmax", data="digits", strategy="dpsgd", clients=4)


# partitions instead of ids


class Ids:
    """A grid whose nodes have large random-looking ids, in the order of nothing."""

    def __init__(self, partitions):
        self.partitions, self.sent, self.mute = partitions, [], set()
        self.run = None

    def get_node_ids(self):
        return list(self.partitions)

    def set_run(self, run):
        self.run = run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages, *, timeout=None):
        self.push_messages(messages)
        return [self.answer(message) for message in messages if message.metadata.dst_node_id not in self.mute]

    def push_messages(self, messages):
        for message in messages:
            compat.name_message(message, str(len(self.sent)), 99)
            self.sent.append(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids):
        return [self.answer(self.sent[int(id)]) for id in ids]

    def answer(self, message):
        node = message.metadata.dst_node_id
        content = RecordDict({"node": ConfigRecord({"partition-id": self.partitions[node]})})
        return Message(content, reply_to=message)


def test_nodes_are_shown_as_partitions(session):
    grid = ByPartition(Ids({9001: 1, 17: 2, 555: 0}), 3)
    assert grid.get_node_ids() == [0, 1, 2]
    replies = grid.send_and_receive([Message(RecordDict(), partition, "train") for partition in (2, 0)])
    assert [reply.metadata.src_node_id for reply in replies] == [2, 0]
    ids = grid.push_messages([grid.create_message(RecordDict(), "train", 1, "g", ttl=5.0)])
    (reply,) = grid.pull_messages(ids)
    assert (reply.metadata.src_node_id, reply.metadata.group_id) == (1, "g")
    assert grid.grid.sent[-1].metadata.dst_node_id == 9001
    assert grid.grid.sent[-1].metadata.ttl == 5.0
    grid.set_run("run")
    assert grid.run == "run"


class Deaf(Ids):
    """Nodes whose ClientApp fails."""

    code = compat.RAISED

    def answer(self, message):
        return Message(Error(self.code, "cannot pickle"), reply_to=message)


def test_clients_that_cannot_say_what_they_hold_end_the_run(session, monkeypatch):
    monkeypatch.setattr("fedsim.flower.deploy.bypartition.time.sleep", lambda seconds: None)
    inner = Deaf({9001: 1, 17: 0})
    told = r"has failed 3 times to say which partition it holds; .*client_app .*\(cannot pickle\)"
    with pytest.raises(RunError, match=told):
        ByPartition(inner, 2)
    assert len(inner.sent) == 6


@pytest.mark.parametrize("code", compat.GONE)
def test_clients_that_are_away_may_come_back(code, session, monkeypatch):
    """They do at the seventh time."""
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 6:
            inner.answer = lambda message: Ids.answer(inner, message)

    monkeypatch.setattr("fedsim.flower.deploy.bypartition.time.sleep", sleep)
    inner = Deaf({9001: 1, 17: 0})
    inner.code = code
    assert ByPartition(inner, 2).get_node_ids() == [0, 1]
    assert len(waits) == 6


def test_a_written_app_can_be_sent_to_another_process(session):
    """It answers there as here; Flower's simulation sends it with every message."""
    one = client_app(model="softmax", data="digits", strategy="fedavg")
    two = pickle.loads(pickle.dumps(one))
    side = server_side(model="softmax", data="digits", strategy="fedavg", clients=2)
    found = []
    for app in (one, two):
        context = compat.make_context(0, {"partition-id": 0, "num-partitions": 2}, {})
        message = Message(
            RecordDict({"arrays": side.arrays, "config": ConfigRecord({"server-round": 1})}), 0, "train"
        )
        found.append(app(message, context).content["arrays"]["1.weight"].numpy())
        two = pickle.loads(pickle.dumps(app))  # also after its work
    np.testing.assert_array_equal(*found)


def test_a_written_app_names_no_package_of_a_stranger(tmp_path):
    write_app(tmp_path / "app", "fedavg")
    written = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    assert written["project"]["dependencies"] == ["flwr>=1.41"]


def test_a_node_that_does_not_answer_is_not_shown(session):
    inner = Ids({9001: 1, 17: 0})
    inner.mute = {9001}
    grid = ByPartition(inner)
    assert grid.get_node_ids() == [0]
    inner.mute = set()
    assert grid.get_node_ids() == [0, 1]


def test_that_a_node_is_gone_is_said_by_the_link(session):
    inner = Ids({9001: 1, 17: 0})
    grid = ByPartition(inner, 2)
    answer = inner.answer

    def gone(message):
        reply = Message(Error(5, "gone"), reply_to=message)
        compat.set_sender(reply, 1)
        return reply if message.metadata.dst_node_id == 9001 else answer(message)

    inner.answer = gone
    first, second = grid.pull_messages(
        grid.push_messages([Message(RecordDict(), node, "train") for node in (1, 0)])
    )
    assert (first.metadata.src_node_id, first.has_error()) == (1, True)
    assert (second.metadata.src_node_id, second.has_error()) == (0, False)
    first, second = grid.send_and_receive([Message(RecordDict(), node, "train") for node in (1, 0)])
    assert (first.metadata.src_node_id, second.metadata.src_node_id) == (1, 0)


def test_a_node_that_was_started_again_takes_its_place(session):
    inner = Ids({9001: 0, 17: 1})
    grid = ByPartition(inner, 2)
    inner.partitions = {17: 1, 4: 0}
    assert grid.get_node_ids() == [0, 1]
    grid.push_messages([Message(RecordDict(), 0, "train")])
    assert inner.sent[-1].metadata.dst_node_id == 4


def test_two_nodes_with_one_partition(session):
    with pytest.raises(RunError, match="the nodes 17 and 9001 both hold partition 0"):
        ByPartition(Ids({9001: 0, 17: 0}), 2)


def test_a_partition_that_nobody_holds(session):
    grid = ByPartition(Ids({9001: 0}))
    with pytest.raises(RunError, match="no node holds partition 3"):
        grid.push_messages([Message(RecordDict(), 3, "train")])
    with pytest.raises(BadValue, match="at least 1"):
        ByPartition(Ids({}), 0)


def test_waiting_for_nodes_that_do_not_exist_stalls(tmp_path):
    app, _ = written(tmp_path, "fedamd")
    with pytest.raises(StalledError, match="nobody else can come"):
        run_app(app, nodes=3, out=tmp_path / "runs")


# templates


def test_a_written_app_is_complete(tmp_path):
    files = write_app(tmp_path / "My App", "fedamd")
    names = sorted(str(file.relative_to(tmp_path / "My App")) for file in files)
    inside = ["__init__.py", "client_app.py", "experiment.py", "server_app.py"]
    assert names == ["LICENSE", "README.md", *[f"my_app/{name}" for name in inside], "pyproject.toml"]
    for file in files:
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")
    result = run_app(tmp_path / "My App", nodes=2, run_config="num-server-rounds=1", out=tmp_path / "runs")
    assert result.summary["rounds"] == 1


SERVERS = [
    name
    for name in parts.names("strategies")
    if isinstance(part := parts.find("strategies", name), type) and issubclass(part, Strategy)
]


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_strategy_has_parameters_to_begin_with(name, tmp_path):
    write_app(tmp_path / "app", name)
    options = {"run_config": "num-server-rounds=1", "overrides": {"record.report": False}}
    nodes = 3 if name in ("bulyan", "krum", "multikrum") else 2
    result = run_app(tmp_path / "app", nodes=nodes, out=tmp_path / "runs", **options)
    assert result.summary["rounds"] >= 1


def test_an_app_is_never_written_over_files(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="must be new or empty"):
        write_app(tmp_path, "fedamd")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fedamx", "did you mean fedamd"),
        ("centralised", "trains in one place and asks no client"),
        *((name, "has peers and no server") for name in ("dpsgd", "modest", "epidemic", "teleportation")),
    ],
)
def test_an_app_needs_a_server_strategy(name, rule, tmp_path):
    with pytest.raises(ConfigError, match=rule):
        write_app(tmp_path / "app", name)
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("name", "owner"),
    [("class", "Python"), ("random", "Python"), ("fedsim", "fedsim-lab, which"), ("NumPy", "numpy, which")],
)
def test_an_app_has_a_name_of_its_own(name, owner, tmp_path):
    with pytest.raises(ConfigError, match=f"DIR: .*the app's package would be called .*belongs to {owner}"):
        write_app(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["2024", "1e3", "true", ".2"])
def test_a_name_is_text_whatever_it_looks_like(name, app):
    folder = app("plain", {"pyproject.toml": ('name = "plain"', f'name = "{name}"')})
    assert read_world(read_project(folder), 2, None, {})[0].name == name.strip(".")


def test_a_model_is_saved_row_by_row(tmp_path):
    """However its arrays lie in memory."""
    made = server_side(model="softmax", data="digits", strategy="fedavg", clients=2)
    numbers = np.arange(6.0).reshape(2, 3)
    arrays = ArrayRecord({"w": Array(np.asfortranarray(numbers)), "n": Array(np.array(3.0))})
    made.save(arrays, tmp_path / "model")
    saved = load_file(tmp_path / "model")
    assert (saved["w"].tolist(), saved["n"].shape) == (numbers.tolist(), ())


def test_client_apps_are_clientapps():
    assert isinstance(client_app(model="softmax", data="digits", strategy="fedavg"), ClientApp)
