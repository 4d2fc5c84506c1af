"""What stands in for computed numbers where only time is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.cli import show
from fedsim.errors import ConfigError, RunError, ValueNeeded
from fedsim.flower.lazy import LazyMetrics
from fedsim.learn.deferred import Deferred, combine, compute
from fedsim.record.store import facts, read
from fedsim.spec.experiment import Assume, load


class Shrinks(FedAvg):
    """After each round, asks the share of the clients that the mean training loss says."""

    timing_depends_on_values = True
    share = 1.0

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return messages[: round(len(messages) * self.share)]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert metrics is not None
        self.share = float(metrics["train_loss"])  # type: ignore[arg-type]
        return arrays, metrics


class Watches(FedAvg):
    """Remembers what it is told of the server's evaluations."""

    timing_depends_on_values = True
    told: list[dict[str, float]]

    def start(self, *given: Any, **named: Any) -> Any:
        measure, self.told = named["evaluate_fn"], []

        def listen(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            found = measure(server_round, arrays)
            self.told.append({} if found is None else dict(found))
            if len(self.told) > 1 and self.told[-1]["loss"] < 0.3:
                raise ZeroDivisionError(f"the loss is {self.told[-1]['loss']}")
            return found

        named["evaluate_fn"] = listen
        return super().start(*given, **named)


def experiment(name: str, **blocks: Any) -> dict[str, Any]:
    strategy = {"name": f"{__name__}:{name}" if name != "fedavg" else name, "fraction_evaluate": 0.0}
    base = {"data": {"clients": 6}, "model": "softmax", "strategy": strategy, "stop": {"rounds": 3}}
    return {**base, "devices": {"seconds_per_sample": 0.01}, "record": {"report": False}, **blocks}


def dry(name: str, out: Path, **blocks: Any) -> fedsim.Result:
    return fedsim.run(experiment(name, **blocks), out=out, timing_only=True)


# the block


def test_nothing_is_assumed_unless_it_is_said() -> None:
    assert load(experiment("fedavg")).assume.numbers == {}


def test_any_metric_may_be_assumed_and_is_written_back(tmp_path: Path) -> None:
    given = load(experiment("fedavg", assume={"accuracy": 0.5, "score": -2, "loss": 1}))
    assert given.assume.numbers == {"loss": 1.0, "accuracy": 0.5, "score": -2.0}
    path = tmp_path / "experiment.yaml"
    path.write_text(given.dump())
    assert load(path) == given


@pytest.mark.parametrize(
    ("assume", "line"),
    [
        ({"accuracy": 1.5}, "assume.accuracy: 1.5: must be at most 1"),
        ({"loss": -1}, "assume.loss: -1: must be at least 0"),
        ({"score": float("nan")}, "assume.score: nan: must be a finite number"),
        ({"score": "high"}, "assume.score: high: must be a number"),
        (3, "assume: 3: must be a block of keys"),
    ],
)
def test_what_cannot_be_assumed(assume: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(experiment("fedavg", assume=assume))
    assert str(caught.value) == line


@given(st.dictionaries(st.sampled_from(["a", "train_loss", "score"]), st.floats(-1e6, 1e6), max_size=3))
def test_the_numbers_are_what_was_given(numbers: dict[str, float]) -> None:
    assert Assume.model_validate(numbers).numbers == numbers


# values


def test_an_assumed_number_can_be_read_and_a_vector_beside_it_cannot() -> None:
    result = Deferred.phantom({"train_loss": 0.5})
    compute([result, result.pick("train_loss")])
    assert result.value() == {"train_loss": 0.5}
    assert result.pick("train_loss").value() == 0.5
    assert result.is_phantom
    assert result.pick("arrays").is_phantom
    assert combine([result.pick("arrays")], [2.0]).is_phantom
    with pytest.raises(ValueNeeded, match="this choice depends on one"):
        result.pick("arrays").value()


def test_a_number_that_nobody_gave_is_asked_for_by_name() -> None:
    with pytest.raises(ValueNeeded, match="reads score, and assume has only loss; add score to assume"):
        Deferred.phantom({"loss": 1.0}).value()["score"]


def test_metrics_of_phantoms_read_as_assumed_or_as_zero() -> None:
    known: dict[str, int | float] = {"num-examples": 7}
    assumed = LazyMetrics(
        dict(known), Deferred.phantom({"loss": 0.25, "accuracy": 0.75}), ("loss", "accuracy")
    )
    assert dict(assumed) == {"num-examples": 7, "loss": 0.25, "accuracy": 0.75}
    assert dict(LazyMetrics(dict(known), Deferred.phantom(), ("loss",))) == {"num-examples": 7, "loss": 0.0}
    with pytest.raises(ValueNeeded, match="add loss"):
        LazyMetrics({}, Deferred.phantom({"score": 1.0}), ("loss",)).items()


# runs


def test_choices_follow_the_assumed_values(tmp_path: Path) -> None:
    result = dry("Shrinks", tmp_path, assume={"train_loss": 0.5})
    # 6 clients in the first round, then half of them in each of the other two
    assert read(result.path, "rounds")["clients"].tolist() == [0, 6, 9, 12]
    assert result.summary["assumed"] == facts(result.path)["assumed"] == {"train_loss": 0.5}
    all_of_them = dry("Shrinks", tmp_path, assume={"train_loss": 1.0})
    assert read(all_of_them.path, "rounds")["clients"].tolist() == [0, 6, 12, 18]


def test_the_servers_evaluations_read_as_assumed(tmp_path: Path) -> None:
    assume = {"loss": 0.25, "accuracy": 0.5, "train_loss": 1.0}
    with pytest.raises(RunError, match=r"the loss is 0\.25"):
        dry("Watches", tmp_path, assume=assume)
    summary = dry("Watches", tmp_path, assume={**assume, "loss": 0.5}).summary
    assert (summary["rounds"], summary["loss"], summary["accuracy"]) == (3, None, None)


def test_a_missing_number_stops_the_run_and_says_which(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="reads train_loss, and assume has only score; add train_loss"
    ) as caught:
        dry("Shrinks", tmp_path, assume={"score": 1.0})
    assert (caught.value.round, caught.value.phase) == (1, "Shrinks")


def test_without_assumptions_the_refusal_names_the_strategy_and_what_to_assume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        dry("Shrinks", tmp_path)
    line = f"strategy.name: {__name__}:Shrinks: cannot run timing-only: its choices depend on values; "
    assert str(caught.value) == line + "say what to assume of them: assume: {train_loss: 1.0}"


def test_where_values_are_computed_nothing_is_assumed(tmp_path: Path) -> None:
    plain = fedsim.run(experiment("fedavg"), out=tmp_path)
    same = fedsim.run(experiment("fedavg", assume={"accuracy": 1.0, "loss": 9.0}), out=tmp_path)
    assert same.summary["run_hash"] == plain.summary["run_hash"]
    assert same.summary["accuracy"] == plain.summary["accuracy"] < 1
    assert same.summary["assumed"] is None
    assert "assumed" not in facts(same.path)


def test_a_strategy_that_reads_values_without_choosing_by_them_needs_no_assumption(tmp_path: Path) -> None:
    plain = dry("fedavg", tmp_path).summary
    assert dry("fedavg", tmp_path, assume={"accuracy": 0.5}).summary["event_hash"] == plain["event_hash"]


# targets


def test_an_assumed_accuracy_reaches_a_target_at_the_first_evaluation(tmp_path: Path) -> None:
    stop = {"rounds": 3, "target": {"accuracy": 0.6}}
    reached = dry("fedavg", tmp_path, assume={"accuracy": 0.6}, stop=stop).summary
    assert (reached["rounds"], reached["time_to_target_s"]) == (0, 0.0)
    missed = dry("fedavg", tmp_path, assume={"accuracy": 0.59}, stop=stop).summary
    assert (missed["rounds"], missed["time_to_target_s"]) == (3, None)


def test_a_target_without_an_assumed_accuracy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"stop\.target: a timing-only run has no accuracy .*assume\.accuracy"
    ):
        dry("fedavg", tmp_path, assume={"loss": 1}, stop={"target": {"accuracy": 0.6}})


def test_a_target_that_is_never_reached_needs_another_end(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the assumed accuracy of 0\.5 never reaches 0\.6; give stop\.rounds"
    ):
        dry("fedavg", tmp_path, assume={"accuracy": 0.5}, stop={"target": {"accuracy": 0.6}})


# saying so


def test_the_report_and_the_printed_summary_say_what_was_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dry("Shrinks", tmp_path, assume={"train_loss": 0.5}, record={"report": True})
    page = (result.path / "report.html").read_text()
    assert "it was not computed but <strong>assumed</strong>: train_loss = 0.5." in page
    assert json.loads((result.path / "summary.json").read_text())["assumed"] == {"train_loss": 0.5}
    assert show._cell({"loss": 0.5, "accuracy": 0.25}) == "loss = 0.5, accuracy = 0.25"
    assert "assumed" in show.SUMMARY
    plain = dry("fedavg", tmp_path, record={"report": True})
    assert "assumed</strong>" not in (plain.path / "report.html").read_text()


def test_a_selector_that_reads_the_loss_needs_no_accuracy(tmp_path: Path) -> None:
    blocks: dict[str, Any] = {
        "data": {"name": "digits", "clients": 12},
        "model": "softmax",
        "strategy": {
            "name": "fedavg",
            "fraction_evaluate": 0.0,
            "select": {"name": "power_of_choice", "candidates": 6},
        },
        "stop": {"rounds": 2},
        "record": {"report": False},
    }
    with pytest.raises(ConfigError, match=r"assume: \{loss: 1.0, train_loss: 1.0\}"):
        fedsim.run(blocks, out=tmp_path, timing_only=True)
    assumed = {"loss": 0.5, "train_loss": 1.0}
    found = fedsim.run({**blocks, "assume": assumed}, out=tmp_path, timing_only=True)
    assert found.summary["rounds"] == 2
    assert found.summary["assumed"] == assumed
