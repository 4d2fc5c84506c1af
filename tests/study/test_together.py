"""Runs of a study that advance together: the same bits as one after the other, whatever happens to one of them."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.learn.data import datasets
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.kept import kept, made_once
from fedsim.learn.engines.own import Own, belongs
from fedsim.learn.engines.together import GROUP, Group
from fedsim.learn.engines.workers import Workers
from fedsim.running.together import advance
from fedsim.study.file import load
from fedsim.study.kept import DONE, FAILED
from fedsim.study.sweep import sweep

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.1}
BASE = {
    "data": {"clients": 5},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 3, "mu": 0.0, "local": LOCAL},
    "stop": {"rounds": 2},
    "record": {"report": False, "events": False},
}
SEEDS = {"base": BASE, "vary": {"seed": [1, 2, 3]}}
KINDS = [
    {"name": "fedavg", "local": LOCAL},
    {"name": "fedadam", "local": LOCAL},
    {"name": "scaffold", "participants": 3, "local": LOCAL},
    {"name": "fedamd", "participants": 2, "p": 0.5, "local": LOCAL},
    {"name": "fedbuff", "concurrency": 3, "buffer": 2, "local": LOCAL},
]
MIXED = {
    "base": BASE,
    "methods": {
        **{one["name"]: {"strategy": one} for one in KINDS},
        "peers": {"strategy": {"name": "dpsgd", "local": LOCAL}, "topology": "ring"},
        "double": {"compute.dtype": "float64", "stop.rounds": 3},
        "lean": {"model": "gn-lenet", "evaluate.batch_size": 300},
        "drops": {"model": "tests.study.test_together:dropping"},
        "ordered": {"strategy.local": {"epochs": 1, "batch_size": 8, "curriculum": {"score": "both"}}},
    },
}


def dropping(*, shape, classes):
    size = int(np.prod(shape))
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(size, classes))


def hashes(outcomes):
    return [(one.status, one.reason, one.summary.get("run_hash")) for one in outcomes]


def test_seeds_give_what_they_give_alone(tmp_path):
    alone = fedsim.sweep(SEEDS, out=tmp_path / "alone")
    for jobs in (1, 2, 16):
        heard = []
        found = fedsim.sweep(
            SEEDS,
            out=tmp_path / str(jobs),
            jobs=jobs,
            together=True,
            told=lambda one, count, total, heard=heard: heard.append((one.status, count, total)),
        )
        assert hashes(found) == hashes(alone)
        assert heard == [(DONE, count, 3) for count in (1, 2, 3)]
    again = fedsim.sweep(SEEDS, out=tmp_path / "16", together=True)
    assert [one.new for one in again] == [False] * 3


@pytest.mark.slow
def test_methods_of_every_kind_give_what_they_give_alone(tmp_path):
    alone = fedsim.sweep(MIXED, out=tmp_path / "alone")
    found = fedsim.sweep(MIXED, out=tmp_path / "together", jobs=16, together=True)
    assert hashes(found) == hashes(alone)
    assert {one.status for one in found} == {DONE}


@pytest.mark.slow
def test_several_processes_serve_all_runs(tmp_path, monkeypatch):
    pieces = Counter()
    take, compute = Workers._take, Workers._share

    def taken(self, process, how, *rest):
        pieces[how] += 1
        take(self, process, how, *rest)

    def shared(self, *rest):
        if not self._begun:
            self.begin()
            self.wait()
        self._is_worth_it = lambda kind, count: count > 1
        return compute(self, *rest)

    monkeypatch.setattr(Workers, "_take", taken)
    monkeypatch.setattr(Workers, "_share", shared)
    study = {**SEEDS, "base": {**BASE, "compute": {"workers": 2, "device": "cpu"}}}
    found = fedsim.sweep(study, out=tmp_path / "together", jobs=3, together=True)
    monkeypatch.undo()
    assert pieces["done"] > 0
    assert pieces["failed"] == 0
    assert [one.status for one in found] == [DONE] * 3
    alone = fedsim.sweep(
        {**SEEDS, "base": {**BASE, "compute": {"workers": 1, "device": "cpu"}}}, out=tmp_path
    )
    kept_ = ("event_hash", "weights_hash", "accuracy", "loss")
    assert [[one.summary[k] for k in kept_] for one in found] == [
        [one.summary[k] for k in kept_] for one in alone
    ]


def falling(source, *, overrides, out):
    if overrides["seed"] == 2:
        raise RunError("the sky falls", 1, 3, 0.5, "train")
    return fedsim.run(source, overrides=overrides, out=out)


def test_a_run_that_fails_stops_no_other(tmp_path):
    found = sweep(load(SEEDS), falling, fedsim.resume, tmp_path, jobs=3, together=advance)
    assert [one.status for one in found] == [DONE, FAILED, DONE]
    assert "the sky falls" in found[1].reason
    rates = {"base": BASE, "vary": {"strategy.local.lr": [0.1, 1e30, 0.2]}}
    wild = fedsim.sweep(rates, out=tmp_path / "wild", jobs=3, together=True)
    alone = fedsim.sweep(rates, out=tmp_path / "tame")
    assert [one.status for one in wild] == [one.status for one in alone]
    assert hashes(wild)[0] == hashes(alone)[0]
    assert hashes(wild)[2] == hashes(alone)[2]
    late = {"base": BASE, "vary": {"strategy.participants": [2, 9]}}
    refused = fedsim.sweep(late, out=tmp_path / "late", jobs=2, together=True)
    assert [one.status for one in refused] == [DONE, FAILED]
    assert "participants: 9" in refused[1].reason


class Broken(Exception):
    pass


def test_an_error_of_the_program_itself_is_told_and_the_others_are_stopped_where_they_are(tmp_path):
    def breaking(source, *, overrides, out):
        if overrides["seed"] == 1:
            raise Broken
        return fedsim.run(source, overrides=overrides, out=out)

    before = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    with pytest.raises(Broken):
        sweep(load(SEEDS), breaking, fedsim.resume, tmp_path, jobs=3, together=advance)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before[:2]
    assert np.random.get_state()[1].tolist() == before[2]
    assert GROUP.get() is None
    found = fedsim.sweep(SEEDS, out=tmp_path, jobs=3, together=True, retry=True)
    assert hashes(found) == hashes(fedsim.sweep(SEEDS, out=tmp_path / "alone"))


def test_runs_go_on_one_at_a_time_and_end_in_turn():
    went = []

    def run(name, error=None):
        went.append(name)
        if error is not None:
            raise error
        return name

    group = Group([lambda: run("a"), lambda: run("b", KeyError("b")), lambda: run("c")])
    ends = dict(group.results())
    assert went == ["a", "b", "c"]
    assert (ends[0](), ends[2]()) == ("a", "c")
    with pytest.raises(KeyError):
        ends[1]()


def test_each_run_has_global_generators_and_more_of_its_own():
    held = {"x": 0}
    belongs(lambda: held["x"], lambda x: held.update(x=x))
    outside, one, two = Own(), Own.fresh(), Own.fresh()
    drawn = []
    for run, seed in ((one, 1), (two, 2), (one, None), (two, None)):
        run.back()
        if seed is not None:
            random.seed(seed), np.random.seed(seed), torch.default_generator.manual_seed(seed)
            assert held["x"] == 0
            held["x"] = seed
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(())), held["x"]))
        run.aside()
    outside.back()
    assert held["x"] == 0
    for seed, places in ((1, (0, 2)), (2, (1, 3))):
        random.seed(seed), np.random.seed(seed), torch.default_generator.manual_seed(seed)
        for place in places:
            wanted = random.random(), float(np.random.random()), float(torch.rand(())), seed
            assert drawn[place] == wanted


def test_data_are_made_once_where_they_are_the_same():
    made = []

    def part(*, clients: int, shift: float = 0.0) -> Dataset:
        made.append((clients, shift))
        return datasets.digits(seed=0)

    def ask(seed, clients=2, **given):
        supplied = {"seed": seed, "clients": clients}
        return made_once(part, given, supplied, lambda: part(clients=clients, **given))

    assert ask(1) is not ask(1)
    made.clear()
    with kept():
        first = ask(1)
        assert ask(2) is first  # it does not look at the seed
        assert ask(1, clients=3) is not first
        assert ask(1, shift=1.0) is not first  # a third one: the first has gone
        assert ask(1) is not first
    assert made == [(2, 0.0), (3, 0.0), (2, 1.0), (2, 0.0)]


def test_no_run_at_a_time_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="jobs: 0: must be at least 1"):
        fedsim.sweep(SEEDS, out=tmp_path, jobs=0, together=True)


def test_the_command(tmp_path):
    file = tmp_path / "seeds.yaml"
    file.write_text(json.dumps(SEEDS))
    words = ["sweep", str(file), "--out", str(tmp_path), "--together", "--quiet"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "seeds").glob("*/summary.json"))) == 3
