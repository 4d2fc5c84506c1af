from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedsim.errors import MISSING, BadValue, ConfigError
from fedsim.rng import stream
from fedsim.spec.experiment import Constant, Draw, Experiment, Local, Part, load
from fedsim.spec.explain import _inside
from fedsim.spec.yamlfile import parse

SMALL: dict[str, Any] = {"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 2}}


def with_(**blocks: Any) -> dict[str, Any]:
    return {**SMALL, **blocks}


def problems(source: Any, overrides: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    return str(caught.value).split("\n")


def draw(value: Any) -> Any:
    return TypeAdapter(Draw).validate_python(value)


# what a file means


def test_the_defaults():
    experiment = load(SMALL)
    assert (experiment.name, experiment.seed) == ("experiment", 0)
    assert (experiment.data.name, experiment.data.partition.name, experiment.data.root) == (
        "digits",
        "iid",
        None,
    )
    assert (experiment.model.name, experiment.topology.name, experiment.churn.name) == (
        "mlp",
        "star",
        "always",
    )
    assert experiment.strategy.timeout_s == 3600
    assert experiment.strategy.local == Local(
        epochs=1, steps=None, batch_size=32, lr=0.05, momentum=0, weight_decay=0
    )
    assert (experiment.network.header_bytes, experiment.network.detect_s) == (64, 10)
    assert experiment.network.latency_ms == experiment.network.node_latency_ms == Constant(value=0)
    assert experiment.network.up_mbps is experiment.network.down_mbps is experiment.network.edge_mbps is None
    assert experiment.devices.seconds_per_sample == Constant(value=0.001)
    assert experiment.faults == []
    assert (experiment.evaluate.every, experiment.evaluate.batch_size) == (1, 1000)
    assert (experiment.stop.rounds, experiment.stop.sim_time_s, experiment.stop.target) == (2, None, None)
    compute = experiment.compute
    assert (compute.engine.name, compute.device, compute.dtype) == ("auto", "auto", "float32")
    assert (compute.slots, compute.threads) == (None, 1)
    assert (experiment.record.events, experiment.record.report) == (True, True)


def test_every_field_says_what_it_is():
    def undocumented(model: Any, seen: set[Any]) -> list[str]:
        if model in seen:
            return []
        seen.add(model)
        found = [
            f"{model.__name__}.{key}" for key, field in model.model_fields.items() if not field.description
        ]
        for inner in model.model_fields.values():
            for block in _inside(inner.annotation):
                found += undocumented(block, seen)
        return found

    assert undocumented(Experiment, seen := set()) == []
    assert {Local, Part, Constant} < seen


def test_a_part_is_a_name_or_a_block():
    short = load(with_(topology="ring", faults=["crash", {"name": "slow", "factor": 2}]))
    long = load(with_(topology={"name": "ring"}, faults=[{"name": "crash"}, {"factor": 2, "name": "slow"}]))
    assert short == long
    assert short.topology == Part(name="ring")
    assert short.faults[1].params == {"factor": 2}


def test_other_keys_of_data_and_strategy_are_parameters():
    experiment = load(
        with_(
            data={"clients": 3, "name": "synthetic", "beta": [1, {"x": 2}], "alpha": 0.5},
            strategy={"name": "fedamd", "p": 0.5, "local": {"steps": 3}, "timeout_s": 60},
        )
    )
    assert experiment.data.params == {"alpha": 0.5, "beta": [1, {"x": 2}]}
    assert experiment.strategy.params == {"p": 0.5}
    assert (experiment.strategy.local.steps, experiment.strategy.local.epochs) == (3, None)
    assert experiment.strategy.timeout_s == 60.0


def test_parameters_keep_the_order_of_the_file_and_are_written_in_a_fixed_one():
    one = load(with_(strategy={"z": 1, "name": "x", "a": 2}, topology={"y": 1, "name": "t", "b": 2}))
    two = load(with_(strategy={"a": 2, "name": "x", "z": 1}, topology={"b": 2, "y": 1, "name": "t"}))
    assert (list(one.strategy.params), list(one.topology.params)) == (["z", "a"], ["y", "b"])
    assert (one.dump(), one.digest()) == (two.dump(), two.digest())


def test_a_parameter_may_have_any_name():
    assert load(with_(model={"name": "mlp", "params": 1, "copy": 2})).model.params == {"params": 1, "copy": 2}


def test_local_training_may_differ_between_clients():
    assert load(with_(strategy={"name": "x", "local": {"lr": [0.1, 0.2, 0.3, 1]}})).strategy.local.lr == [
        0.1,
        0.2,
        0.3,
        1.0,
    ]
    assert (
        load(with_(strategy={"name": "x", "local": {"batch_size": None}})).strategy.local.batch_size is None
    )


def test_null_epochs_and_steps_mean_one_epoch():
    assert (
        load(with_(strategy={"name": "x", "local": {"epochs": None, "steps": None}})).strategy.local.epochs
        == 1
    )


@pytest.mark.parametrize(
    "stop", [{"rounds": 1}, {"sim_time_s": 0.5}, {"target": {"accuracy": 1}}, {"rounds": 3, "sim_time_s": 9}]
)
def test_ways_to_stop(stop):
    assert load(with_(stop=stop)).stop.model_dump(exclude_none=True) == stop


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device):
    assert load(with_(compute={"device": device})).compute.device == device


def test_plain_python_values_are_welcome():
    experiment = load(
        {
            "data": {"clients": np.int64(3), "root": None},
            "strategy": {"name": "x", "local": {"lr": np.array([0.1, 0.2, 0.3])}},
            "stop": {"sim_time_s": np.float64(2.5)},
            "faults": ("crash",),
        }
    )
    assert experiment.data.clients == 3
    assert experiment.strategy.local.lr == [0.1, 0.2, 0.3]
    assert experiment.faults == [Part(name="crash")]
    assert load(SMALL, {"seed": np.int32(4)}).seed == 4


def test_a_mapping_is_not_changed():
    source = {"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 2}}
    load(source, {"strategy.local.steps": "3", "data.clients": "8"})
    assert source == SMALL


def test_an_experiment_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load(SMALL).seed = 3  # type: ignore[misc]


# the name


@pytest.mark.parametrize(
    ("file", "name"),
    [("quick-start_1.0.yaml", "quick-start_1.0"), ("my run (2).yaml", "my-run-2-"), ("é.yaml", "-")],
)
def test_the_name_is_the_stem_of_the_file(tmp_path, file, name):
    path = tmp_path / file
    path.write_text(load(SMALL).dump().replace("name: experiment\n", "", 1))
    assert load(path).name == name
    assert load(str(path), {"name": "other"}).name == "other"


@pytest.mark.parametrize("name", ["a b", "a/b", "", ".", "..", "a\n", "ü"])
def test_a_name_that_cannot_be_a_folder(name):
    with pytest.raises(ConfigError, match="may only contain letters, digits, dots, dashes and underscores"):
        load(with_(name=name))


# draws


def test_a_number_is_always_the_same():
    drawn = draw(3).sample(stream(0, "test"), 4)
    assert drawn.dtype == np.float64
    assert drawn.tolist() == [3.0, 3.0, 3.0, 3.0]


@settings(max_examples=30, deadline=None)
@given(low=st.floats(0, 1e6), width=st.floats(0, 1e6), seed=st.integers(0, 99))
def test_uniform_stays_between_its_bounds(low, width, seed):
    drawn = draw({"distribution": "uniform", "low": low, "high": low + width}).sample(
        stream(seed, "test"), 50
    )
    assert drawn.shape == (50,)
    assert ((drawn >= low) & (drawn <= low + width)).all()


def test_the_moments_of_the_distributions():
    # standard errors at n = 40,000: 0.003 (uniform), 0.02 (exponential), 0.003 (median of the logarithm)
    uniform = draw({"distribution": "uniform", "low": 1, "high": 3}).sample(stream(1, "test"), 40_000)
    assert uniform.mean() == pytest.approx(2, abs=0.015)
    exponential = draw({"distribution": "exponential", "mean": 4}).sample(stream(2, "test"), 40_000)
    assert exponential.mean() == pytest.approx(4, abs=0.1)
    assert exponential.std() == pytest.approx(4, abs=0.2)
    lognormal = draw({"distribution": "lognormal", "median": 5, "sigma": 0.5}).sample(
        stream(3, "test"), 40_000
    )
    assert np.median(lognormal) == pytest.approx(5, rel=0.02)
    assert np.log(lognormal).std() == pytest.approx(0.5, abs=0.01)


def test_a_lognormal_without_spread_is_its_median():
    drawn = draw({"distribution": "lognormal", "median": 7, "sigma": 0}).sample(stream(0, "test"), 3)
    assert drawn == pytest.approx([7, 7, 7])


def test_a_draw_depends_on_nothing_but_the_generator():
    latency = draw({"distribution": "exponential", "mean": 4})
    assert (latency.sample(stream(5, "a"), 9) == latency.sample(stream(5, "a"), 9)).all()
    assert (latency.sample(stream(5, "a"), 9) != latency.sample(stream(6, "a"), 9)).any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "network.latency_ms: -1: must be at least 0"),
        ("fast", "network.latency_ms: fast: must be a number"),
        ("5", "network.latency_ms: '5': must be a number; write it without quotes"),
        ([1], "network.latency_ms: [1]: must be a number"),
        (math.inf, "network.latency_ms: inf: must be a finite number"),
        ({"mean": 3}, "network.latency_ms.distribution: is required"),
        (
            {"distribution": "uniformly"},
            "network.latency_ms.distribution: uniformly: must be one of constant, uniform, lognormal, "
            "exponential; did you mean uniform?",
        ),
        (
            {"distribution": "uniform", "low": 5, "high": 2},
            "network.latency_ms.high: 2: must be at least low (5)",
        ),
        (
            {"distribution": "lognormal", "median": 0, "sigma": 1},
            "network.latency_ms.median: 0: must be greater than 0",
        ),
        (
            {"distribution": "lognormal", "median": 1, "sigma": -1},
            "network.latency_ms.sigma: -1: must be at least 0",
        ),
        ({"distribution": "exponential"}, "network.latency_ms.mean: is required"),
        (
            {"distribution": "exponential", "maen": 3},
            "network.latency_ms.maen: unknown key; did you mean mean?",
        ),
        (
            {"distribution": "constant", "value": 1, "mean": 3},
            "network.latency_ms.mean: unknown key; known: distribution, value",
        ),
    ],
)
def test_draws_that_are_refused(value, message):
    assert problems(with_(network={"latency_ms": value})) == [message]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "network.up_mbps: 0: must be greater than 0"),
        ({"distribution": "uniform", "low": 0, "high": 2}, "network.up_mbps.low: 0: must be greater than 0"),
        ({"distribution": "exponential", "mean": 0}, "network.up_mbps.mean: 0: must be greater than 0"),
        ({"distribution": "constant", "value": 0}, "network.up_mbps.value: 0: must be greater than 0"),
    ],
)
def test_speeds_are_positive(value, message):
    assert problems(with_(network={"up_mbps": value})) == [message]


# mistakes


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"sede": 3}, "sede: unknown key; did you mean seed?"),
        ({"seed": -1}, "seed: -1: must be at least 0"),
        ({"seed": 1.0}, "seed: 1.0: must be a whole number"),
        ({"seed": 1.5}, "seed: 1.5: must be a whole number"),
        ({"seed": "1"}, "seed: '1': must be a whole number; write it without quotes"),
        ({"seed": "1.5"}, "seed: '1.5': must be a whole number"),
        ({"seed": True}, "seed: true: must be a whole number"),
        ({"seed": None}, "seed: null: must be a whole number"),
        ({"name": 3}, "name: 3: must be text"),
        ({"data": {}}, "data.clients: is required"),
        ({"data": "digits"}, "data.clients: is required"),
        ({"data": {"clinets": 3}}, "data.clinets: unknown key; did you mean clients?"),
        ({"data": {"clients": 0}}, "data.clients: 0: must be at least 1"),
        ({"data": 3}, "data: 3: must be a block of keys"),
        ({"topology": 3}, "topology: 3: must be a name or a block with a name"),
        ({"topology": {"degree": 3}}, "topology.name: is required"),
        ({"topology": {"nmae": "ring"}}, "topology.nmae: unknown key; did you mean name?"),
        ({"topology": {"name": "ring", "weight": math.nan}}, "topology.weight: nan: must be a finite number"),
        (
            {"strategy": {"name": "x", "deep": {"a": [math.inf]}}},
            "strategy.deep: {'a': [inf]}: must be a finite number",
        ),
        ({"strategy": {"nam": "x"}}, "strategy.nam: unknown key; did you mean name?"),
        ({"strategy": {"name": "x", "timeout_s": 0}}, "strategy.timeout_s: 0: must be at least 1e-06"),
        (
            {"strategy": {"name": "x", "local": {"stesp": 3}}},
            "strategy.local.stesp: unknown key; did you mean steps?",
        ),
        ({"strategy": {"name": "x", "local": {"lr": 0}}}, "strategy.local.lr: 0: must be greater than 0"),
        (
            {"strategy": {"name": "x", "local": {"lr": "1"}}},
            "strategy.local.lr: '1': must be a number; write it without quotes",
        ),
        (
            {"strategy": {"name": "x", "local": {"lr": [1, -2]}}},
            "strategy.local.lr.1: -2: must be greater than 0",
        ),
        (
            {"strategy": {"name": "x", "local": {"momentum": 1}}},
            "strategy.local.momentum: 1: must be less than 1",
        ),
        (
            {"strategy": {"name": "x", "local": {"steps": 5, "epochs": 2}}},
            "strategy.local.steps: 5: give either epochs or steps, not both (epochs is 2)",
        ),
        (
            {"strategy": {"name": "x", "local": {"lr": [1, 2]}}},
            "strategy.local.lr: [1.0, 2.0]: 2 rates for 4 clients; give one number or one for each client",
        ),
        ({"faults": "crash"}, "faults: crash: must be a list"),
        ({"faults": ["crash", {"at_s": 3}]}, "faults.1.name: is required"),
        ({"stop": {}}, "stop: {}: give at least one of rounds, sim_time_s and target"),
        ({"stop": {"target": {"accuracy": 90}}}, "stop.target.accuracy: 90: must be at most 1"),
        ({"stop": {"target": {"acuracy": 0.9}}}, "stop.target.acuracy: unknown key; did you mean accuracy?"),
        ({"stop": {"sim_time_s": math.inf}}, "stop.sim_time_s: inf: must be a finite number"),
        ({"compute": {"engine": 3}}, "compute.engine: 3: must be a name or a block with a name"),
        ({"compute": {"device": "gpu"}}, "compute.device: gpu: must be auto, cpu, cuda, cuda:N or mps"),
        ({"compute": {"threads": 0}}, "compute.threads: 0: must be at least 1"),
        ({"record": {"events": "yes"}}, "record.events: yes: must be true or false"),
        (
            {"record": {"events": "true"}},
            "record.events: 'true': must be true or false; write it without quotes",
        ),
        ({"network": {"header_bytes": 2.5}}, "network.header_bytes: 2.5: must be a whole number"),
        ({"record": None}, "record: null: must be a block of keys"),
        (
            {"<one>x": 3},
            "<one>x: unknown key; known: assume, beside, churn, compute, data, devices, evaluate, expert, faults, "
            "loss, model, name, network, record, seed, stop, strategy, topology",
        ),
    ],
)
def test_a_mistake_is_one_line(blocks, message):
    assert problems(with_(**blocks)) == [message]


def test_what_is_required():
    assert problems({}) == ["data: is required", "strategy: is required", "stop: is required"]


BAD = """\
# one mistake of each kind

seed: -1
stratgey:
  name: fedavg
data:
  clinets: 10
topology: {name: ring, width: .inf}
network:
  latencyms: 3
  up_mbps: 0
stop: {rounds: 0}
"""


def test_all_mistakes_of_a_file_in_the_order_of_its_lines(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    assert [line.removeprefix(str(tmp_path)) for line in problems(path)] == [
        "/bad.yaml:3: seed: -1: must be at least 0",
        "/bad.yaml:4: stratgey: unknown key; did you mean strategy?",
        "/bad.yaml:7: data.clinets: unknown key; did you mean clients?",
        "/bad.yaml:8: topology.width: inf: must be a finite number",
        "/bad.yaml:10: network.latencyms: unknown key; did you mean latency_ms?",
        "/bad.yaml:11: network.up_mbps: 0: must be greater than 0",
        "/bad.yaml:12: stop.rounds: 0: must be at least 1",
    ]


def test_a_missing_key_has_the_line_of_its_block(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("\nstop: {rounds: 1}\nstrategy: {}\ndata: {clients: 2}\n")
    assert problems(path) == [f"{path}:3: strategy.name: is required"]


def test_a_missing_block_has_the_first_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("\n\nstop: {rounds: 1}\ndata: {clients: 2}\n")
    assert problems(path) == [f"{path}:3: strategy: is required"]


def test_an_override_names_itself(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(load(SMALL).dump())
    assert problems(path, {"seed": "-1", "network.up_mpbs": "3"}) == [
        "--set seed=-1: seed: -1: must be at least 0",
        "--set network.up_mpbs=3: network.up_mpbs: unknown key; did you mean up_mbps?",
    ]
    assert problems(path, {"faults.0.at_s": "1"})[0].startswith("--set faults.0.at_s=1: faults: 0 must be")


def test_an_override_that_makes_an_unknown_block_names_itself(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("\ndata: {clients: 4}\nstrategy: fedavg\nstop: {rounds: 2}\n")
    assert problems(path, {"stratgey.p": "0.2"}) == [
        "--set stratgey.p=0.2: stratgey: unknown key; did you mean strategy?"
    ]
    (line,) = problems(path, {"faults.0.count": "3"})
    assert line.startswith("--set faults.0.count=3: faults: ")
    assert line.endswith("must be a list")
    assert problems(path, {"network.loss.mean": "3"}) == [
        "--set network.loss.mean=3: network.loss: unknown key; known: "
        + ", ".join(sorted(Experiment.model_fields["network"].annotation.model_fields))  # type: ignore[union-attr]
    ]


def test_an_override_replaces_a_mistake(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(load(SMALL).dump().replace("seed: 0", "seed: wrong"))
    assert load(path, {"seed": "3", "strategy.local.lr": "1e-3"}).seed == 3


def test_a_part_written_as_its_name_can_be_given_parameters_by_an_override():
    experiment = load(with_(topology="random_regular"), {"topology.degree": "4"})
    assert experiment.topology.params == {"degree": 4}


def test_the_default_part_can_be_given_parameters_by_an_override():
    experiment = load(SMALL, {"model.hidden": "[8, 8]", "model.bias": False})
    assert (experiment.model.name, experiment.model.params) == ("mlp", {"bias": False, "hidden": [8, 8]})
    assert load(SMALL, {"topology": "{name: ring}"}).topology == Part(name="ring")
    assert load(SMALL, {"topology.name": "ring"}).topology == Part(name="ring")


# mistakes that only the parts can find


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (
            ("topology",),
            BadValue("name", "rign", "no such topology", "did you mean ring?"),
            "x.yaml:2: topology: rign: no such topology; did you mean ring?",
        ),
        (("topology",), BadValue("degree", MISSING, "is required"), "x.yaml:2: topology.degree: is required"),
        (("model",), BadValue("name", "mlp", "no such model"), "x.yaml:1: model: mlp: no such model"),
        (
            ("churn",),
            BadValue("mean_s", -1, "must be positive"),
            "x.yaml:5: churn.mean_s: -1: must be positive",
        ),
        (("churn",), BadValue("off_s", MISSING, "is required"), "x.yaml:3: churn.off_s: is required"),
        (("churn",), BadValue("name", "x", "no such churn"), "x.yaml:4: churn.name: x: no such churn"),
        (("faults", 1), BadValue("at_s", 9, "after the end"), "x.yaml:8: faults.1.at_s: 9: after the end"),
        (
            ("faults", 0),
            BadValue("name", "crash", "no such fault"),
            "x.yaml:7: faults.0: crash: no such fault",
        ),
        (
            ("strategy",),
            BadValue("local.lr.1", 2.0, "too large"),
            "x.yaml:9: strategy.local.lr.1: 2.0: too large",
        ),
        (
            ("strategy",),
            BadValue("locla", MISSING, "unknown key", "known: p"),
            "x.yaml:9: strategy.locla: unknown key; did you mean local?",
        ),
        (
            ("strategy",),
            BadValue("pp", MISSING, "unknown key", "did you mean p?"),
            "x.yaml:9: strategy.pp: unknown key; did you mean p?",
        ),
        (
            ("strategy",),
            BadValue("zzz", MISSING, "unknown key", "known: p"),
            "x.yaml:9: strategy.zzz: unknown key; known: p",
        ),
        ((), BadValue("", MISSING, "too big for this machine"), "x.yaml:1: too big for this machine"),
        ((), BadValue("", MISSING, "unknown key"), "x.yaml:1: unknown key"),
        # keys that are no parameters of the part
        (("topology",), BadValue("", 7, "too few nodes"), "x.yaml:2: topology: 7: too few nodes"),
        (("topology",), BadValue("n", 7, "too few nodes"), "x.yaml:2: topology.n: 7: too few nodes"),
        (("churn",), BadValue("a..b.0", 7, "odd"), "x.yaml:3: churn.a.b.0: 7: odd"),
        (("churn",), BadValue("mean_s.x.y", 7, "odd"), "x.yaml:5: churn.mean_s.x.y: 7: odd"),
        (("faults", 1), BadValue("a key", "x\ny", "odd\nrule"), r"x.yaml:8: faults.1.a key: x\ny: odd rule"),
        (("model",), BadValue(3, 7, "odd"), "x.yaml:1: model.3: 7: odd"),  # type: ignore[arg-type]
    ],
)
def test_what_a_part_refuses_gets_its_place(tmp_path, monkeypatch, block, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(
        "seed: 1\ntopology: rign\nchurn:\n  name: x\n  mean_s: -1\nfaults:\n  - crash\n"
        "  - {name: crash, at_s: 9}\n"
        "strategy: {name: x, local: {lr: [1, 2]}}\nstop: {rounds: 1}\ndata: {clients: 2}\n"
    )
    assert str(load("x.yaml").problem(block, error)) == message


def test_an_override_that_a_part_refuses_names_itself():
    error = load(SMALL, {"topology.name": "ring", "topology.degree": "3"}).problem(
        ("topology",), BadValue("degree", 3, "4 x 3 is too many")
    )
    assert str(error) == "--set topology.degree=3: topology.degree: 3: 4 x 3 is too many"


# dump and digest


draws = st.one_of(
    st.floats(0.01, 1e6),
    st.builds(
        lambda low, width: {"distribution": "uniform", "low": low, "high": low + width},
        st.floats(0.01, 9),
        st.floats(0, 9),
    ),
    st.builds(lambda mean: {"distribution": "exponential", "mean": mean}, st.floats(1e-9, 1e9)),
    st.builds(
        lambda a, b: {"distribution": "lognormal", "median": a, "sigma": b},
        st.floats(1e-9, 9),
        st.floats(0, 2),
    ),
)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(-1e12, 1e12), st.text()
)
params = st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=3)
part = st.one_of(
    st.text(max_size=6), st.builds(lambda name, rest: {**rest, "name": name}, st.text(max_size=6), params)
)
experiments = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries({"clients": st.integers(1, 99)}, optional={"partition": part}),
        "strategy": part,
        "stop": st.fixed_dictionaries({"rounds": st.integers(1, 99)}),
    },
    optional={
        "seed": st.integers(0, 2**64 - 1),
        "topology": part,
        "faults": st.lists(part, max_size=2),
        "network": st.fixed_dictionaries({}, optional={"latency_ms": draws, "up_mbps": st.none() | draws}),
        "devices": st.fixed_dictionaries({"seconds_per_sample": draws}),
        "record": st.fixed_dictionaries({"events": st.booleans()}),
    },
)


@settings(max_examples=50, deadline=None)
@given(experiments)
def test_a_dump_loads_again_as_an_equal_experiment(source):
    reserved = {"local", "timeout_s"}
    if isinstance(source["strategy"], dict) and reserved & set(source["strategy"]):
        return
    first = load(source)
    again = load(parse(first.dump(), "x.yaml").data)
    assert again == first
    assert again.digest() == first.digest()
    assert again.dump() == first.dump()


def test_a_dump_has_every_default_in_a_fixed_order():
    dumped = load(with_(strategy={"z": 1, "a": 2, "name": "x", "local": {"steps": 3}})).dump()
    tops = [line.partition(":")[0] for line in dumped.split("\n") if line and line[0] not in " -"]
    assert tops == list(Experiment.model_fields)
    assert "  name: x\n  local:\n    epochs: null\n    steps: 3\n    batch_size: 32\n    lr: 0.05\n" in dumped
    assert (
        "  timeout_s: 3600.0\n  quorum: 1.0\n  retries: 0\n  select: null\n  weighting: null\n"
        "  buffers: average\n  around: []\n"
        "  a: 2\n  z: 1\n" in dumped
    )
    assert "topology: star\n" in dumped
    assert "  latency_ms: 0.0\n" in dumped


def test_a_digest_depends_on_what_is_said_and_not_on_how(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "stop: {rounds: 2}\nseed: 0\nstrategy: {name: fedavg, local: {lr: 5e-2}}\ndata: {clients: 4}\n"
    )
    digest = load(path).digest()
    assert digest == load(SMALL).digest()
    assert load(path) == load(SMALL)
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")
    assert digest != load(SMALL, {"seed": 1}).digest()
    assert load(path) != load(SMALL, {"seed": 1})
    assert load(path) != "something else"


def test_loading_needs_no_heavy_library():
    heavy = {"torch", "simpy", "flwr", "networkx"}
    code = f"import sys, fedsim.spec.experiment; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
