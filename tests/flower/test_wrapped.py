"""What goes around strategies: clipping and noise on the server, and reading what clients have compressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.flower import compat
from fedsim.flower.around_strategy import Central, Decoded, Wrapped, written
from fedsim.flower.records import pack, unpack, wire_bytes
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.around import Around
from fedsim.learn.deferred import Deferred
from fedsim.methods.around import CentralNoise
from fedsim.running.build import prepare
from fedsim.running.updates import transforms_of, updates_of
from fedsim.spec.experiment import load

AVERAGING = {"name": "fedavg", "fraction_evaluate": 0.0}
SCAFFOLD = {"name": "scaffold", "participants": 4}
ASKING = [
    {"name": "scaffold", "participants": 4, "warm_start": True},
    {"name": "fedamd", "participants": 4, "local": {"steps": 2}},
    {"name": "bvr_l_sgd", "participants": 4, "inner": 2, "local": {"steps": 2}},
]
"""Strategies that ask clients for something before a round, or before the first."""


def experiment(around=(), strategy=AVERAGING, **more):
    return {
        "seed": 1,
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {**strategy, "around": list(around)},
        "stop": {"rounds": 3},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def flat(result):
    return np.concatenate([array.reshape(-1) for array in result.weights().values()])


class Device(BuiltinClients):
    """Clients that send what a deployed one sends: bytes, compressed for real."""

    sent = 0

    def answer(self, client, message, sim_time_s):
        reply = super().answer(client, message, sim_time_s)
        update = self.local.updates[message.metadata.message_type]
        received = unpack(message.content["arrays"])
        for name in update.sends:
            vector = unpack(reply[name])
            reply[name] = written(update, name, vector, received, self.learner.engine.task.layout, "float64")
        self.sent += wire_bytes(reply)
        return reply


def deployed(given):
    """Run an experiment with such clients, and return the weights and the bytes that they sent."""
    setup = prepare(load(given))
    updates = updates_of(setup.strategy, setup.experiment)
    clients = Device(setup.learner, updates)
    grid = SimGrid(setup.world, clients)
    task = setup.learner.engine.task
    with compat.session(1, grid.server.id, grid.sleep):
        start = pack(setup.learner.initial, task.layout, "float64")
        result = Decoded(setup.strategy, updates).start(grid, start, num_rounds=3)
    return unpack(result.arrays).value().numpy(), clients.sent


AROUND = [
    [],
    [{"name": "top_k", "share": 0.05}],
    ["quantise"],
    [{"name": "clip", "max_norm": 0.5}, {"name": "quantise", "rounding": "stochastic", "bits": 16}],
]


@pytest.mark.parametrize(
    ("around", "strategy"),
    [(around, one) for one in (AVERAGING, SCAFFOLD) for around in AROUND]
    + [(["quantise"], one) for one in ASKING],
    ids=str,
)
def test_compressed_for_real_as_in_the_simulation(around, strategy, tmp_path):
    given = experiment(around, strategy)
    weights, sent = deployed(given)
    result = api.run(given, out=tmp_path)
    assert np.abs(flat(result) - weights).max() < 1e-12
    down = api.run(experiment([], strategy), out=tmp_path, timing_only=True).summary["bytes_up"]
    plain = deployed(experiment([], strategy))[1]
    assert result.summary["bytes_up"] == down - plain + sent
    assert (sent < plain / 3) == bool(around)


def test_bytes_are_counted_without_training(tmp_path):
    given = experiment([{"name": "top_k", "share": 0.05}])
    full, dry = api.run(given, out=tmp_path).summary, api.run(given, out=tmp_path, timing_only=True).summary
    assert full["event_hash"] == dry["event_hash"]
    # 650 weights: 33 indices and values, two headers, the names
    reply = 33 * (4 + 8) + 2 * 128 + len("indicesvalues") + len("arrays")
    reply += len("metrics") + len("num-examples") + 8 + len("train_loss") + 8
    model = len("arrays") + 2 * 128 + 8 * 650 + len("1.weight1.bias")
    instruction = model + len("config") + len("server-round") + 8
    assert full["bytes_up"] == 3 * 4 * (instruction + reply + 2 * 64)


def test_the_server_clips_what_is_too_far_away(tmp_path):
    start = prepare(load(experiment())).learner.initial.value().numpy()
    moved = []
    for around in ([], [{"name": "central_clip", "max_norm": 0.01}], [{"name": "clip", "max_norm": 0.01}]):
        result = api.run(experiment(around, stop={"rounds": 1}), out=tmp_path)
        moved.append(flat(result) - start)
    assert np.linalg.norm(moved[0]) > 0.1
    assert np.linalg.norm(moved[1]) <= 0.01 + 1e-12
    assert np.abs(moved[1] - moved[2]).max() < 1e-12  # no bytes are saved, but the model is the same


def test_the_server_clips_differences_themselves(tmp_path):
    around = [{"name": "central_clip", "max_norm": 0.01}]
    given = experiment(around, SCAFFOLD, stop={"rounds": 1})
    start = prepare(load(given)).learner.initial.value().numpy()
    moved = flat(api.run(given, out=tmp_path)) - start
    assert 0 < np.linalg.norm(moved) <= 0.01 + 1e-12


def test_the_server_clips_what_it_asks_for_besides(tmp_path):
    """The one step of BVR-L-SGD is lr times a mean of gradients, which came before the round."""
    strategy = {"name": "bvr_l_sgd", "participants": 4, "local": {"steps": 1, "lr": 0.5}}
    start = prepare(load(experiment())).learner.initial.value().numpy()
    moved = []
    for around in ([], [{"name": "central_clip", "max_norm": 0.01}]):
        result = api.run(experiment(around, strategy, stop={"rounds": 1}), out=tmp_path)
        moved.append(np.linalg.norm(flat(result) - start))
    assert moved[0] > 0.1
    assert 0 < moved[1] <= 0.5 * 0.01 + 1e-12


def test_noise_on_the_model_has_the_deviation_asked_for(tmp_path):
    noisy, plain = (
        flat(api.run(experiment(around, stop={"rounds": 1}), out=tmp_path))
        for around in ([{"name": "central_noise", "std": 0.3}], [])
    )
    assert np.std(noisy - plain) == pytest.approx(0.3, rel=0.1)
    again = flat(
        api.run(experiment([{"name": "central_noise", "std": 0.3}], stop={"rounds": 1}), out=tmp_path)
    )
    assert np.array_equal(noisy, again)


def test_central_transforms_cost_no_bytes_and_time_alone_works(tmp_path):
    around = [{"name": "central_clip", "max_norm": 1.0}, {"name": "central_noise", "std": 0.1}]
    hashes = {
        api.run(experiment(some), out=tmp_path, timing_only=True).summary["event_hash"]
        for some in (around, [])
    }
    assert len(hashes) == 1


def test_a_wrapped_strategy_shows_what_is_in_it():
    inner = FedAvg(fraction_train=0.25)
    strategy = Central(Wrapped(inner), [CentralNoise(std=1.0)], {})
    assert strategy.fraction_train == 0.25
    assert not hasattr(strategy, "updates")


def test_two_noises_on_the_model_are_two_draws():
    """Their variances add up: 3 and 4 make 5; were they the same numbers, they would make 7."""
    given = load(experiment([{"name": "central_noise", "std": 3.0}, {"name": "central_noise", "std": 4.0}]))
    model = Deferred.known(torch.zeros(40_000, dtype=torch.float64))
    for central in transforms_of(given):
        model = central.model(1, model)
    assert float(model.value().std()) == pytest.approx(5.0, rel=0.02)
    alone = transforms_of(load(experiment([{"name": "central_noise", "std": 3.0}])))
    assert alone[0].seed == transforms_of(given)[0].seed == given.seed


def test_transforms_go_around_all_that_trains_and_nothing_else():
    given = load(experiment([{"name": "clip", "max_norm": 1.0}, "quantise"]))
    strategy = FedAvg()
    own = updates_of(strategy, load(experiment()))["train"]
    strategy.updates = {"train": own, "train.more": own, "query.loss": own}
    found = updates_of(strategy, given)
    assert isinstance(found["train"], Around)
    assert found["train"].keeps == ("train.1.kept.arrays",)
    assert found["train.more"].keeps == ("train.more.1.kept.arrays",)
    assert found["query.loss"] is own
    assert len(transforms_of(given)) == 2


@pytest.mark.parametrize(
    ("around", "line"),
    [
        (["quantize"], "strategy.around.0: quantize: no such transform; did you mean quantise?"),
        ([{"name": "clip", "max_norm": 0}], "strategy.around.0.max_norm: 0: must be greater than 0"),
        (["quantise", {"name": "clip", "max_norm": 1}], "strategy.around.1.name: clip: nothing can follow"),
        (["quantise", {"name": "central_clip"}], "strategy.around.1.max_norm: is required"),
        ([{"name": "noise", "std": -1.0}], "strategy.around.0.std: -1.0: must be at least 0"),
        ([{"name": "top_k", "share": 0.1, "k": 3}], "strategy.around.0.k: unknown key"),
        (["fedsim.methods.select:Uniform"], "strategy.around.0: fedsim.methods.select:Uniform: is neither"),
    ],
)
def test_bad_transforms(around, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(around))
    assert str(caught.value).startswith(line)


def test_a_record_keeps_its_codec_when_it_is_copied():
    given = load(experiment(["quantise"]))
    codec = updates_of(FedAvg(), given)["train"].codec
    from fedsim.flower.records import isolate, repack
    from fedsim.learn.deferred import Deferred

    record = pack(Deferred.known(torch.ones(650)), [("w", (650,))], "float32", codec)
    sizes = {wire_bytes(isolate(RecordDict({"a": record}))), wire_bytes(RecordDict({"a": record}))}
    sizes.add(wire_bytes(RecordDict({"a": repack(Deferred.known(torch.zeros(650)), record)})))
    assert sizes == {650 + 4 + 2 * 128 + len("codesscale") + len("a")}
