"""A model starts from the weights in a file, if they are its own; what is wrong with them is told in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import BadValue, ConfigError, ValueNeeded
from fedsim.learn.warm import entries, started
from fedsim.record.store import facts

GIVEN: dict[str, Any] = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {
        "name": "strategies.server.fedavg:FedAvg",
        "participants": 2,
        "local": {"steps": 2, "batch_size": 8, "lr": 0.1},
    },
    "stop": {"rounds": 4},
    "record": {"report": False},
}


def net(hidden: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def filled(module: nn.Module, value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(one, value) for name, one in module.state_dict().items()}


def write_pt(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "a.pt")
    return folder / "a.pt"


def write_nested(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pth")
    return folder / "a.pth"


def write_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


@pytest.mark.parametrize("write", [write_pt, write_nested, write_safetensors])
def test_all_forms_give_every_weight(
    write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path
) -> None:
    module = net()
    assert started(module, write(filled(net(), 0.5), tmp_path), strict=True) == ""
    assert all(torch.equal(one, torch.full_like(one, 0.5)) for one in module.parameters())


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    """Of the four entries, one is missing, one has another shape, and one is there that the model has not."""
    state = filled(net(), 0.5)
    del state["2.bias"]
    state |= {"0.weight": torch.zeros(3, 5), "head.weight": torch.zeros(1)}
    file, module = write_pt(state, tmp_path), net()
    before = {name: one.clone() for name, one in module.state_dict().items()}
    with pytest.raises(BadValue) as caught:
        started(module, file, strict=True)
    assert caught.value.rule == (
        "does not fit the model: missing: [2.bias]; unexpected: [head.weight]; "
        "of another shape: [0.weight [3, 5] for [3, 2]]"
    )
    assert caught.value.hint == "strict: false takes those that fit"
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    said = started(module, file, strict=False)
    assert said.startswith("the model has taken 2 of 4 entries of a.pt; missing: [2.bias]")
    for name, one in module.state_dict().items():
        taken = name in ("0.bias", "2.weight")
        assert torch.equal(one, torch.full_like(one, 0.5) if taken else before[name]), name


def test_where_nothing_fits_nothing_is_taken(tmp_path: Path) -> None:
    file = write_safetensors({"other": torch.zeros(2)}, tmp_path)
    with pytest.raises(BadValue, match=r"missing: .*0.weight.*unexpected: .other.") as caught:
        started(net(), file, strict=False)
    assert caught.value.hint == ""


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("boom",)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("nowhere.pt", lambda _: None, "there is no such file"),
        (
            "text.pt",
            lambda file: file.write_text("weights"),
            "is no state dict that can be read without running code",
        ),
        (
            "bomb.pt",
            lambda file: torch.save(Bomb(), file),
            "is no state dict that can be read without running code",
        ),
        (
            "module.pt",
            lambda file: torch.save(net(), file),
            "is no state dict that can be read without running code",
        ),
        ("list.pt", lambda file: torch.save([torch.zeros(1)], file), "holds a list"),
        ("numbers.pt", lambda file: torch.save({"a": 1}, file), "holds a dict"),
        ("text.safetensors", lambda file: file.write_text("weights"), "cannot be read"),
        ("empty.safetensors", lambda file: save_file({}, file), "has no weights in it"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(
    name: str, make: Callable[[Path], Any], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    with pytest.raises(BadValue, match=told):
        entries(tmp_path / name)
    assert "boom" not in capfd.readouterr().out


def test_a_run_goes_on_from_the_weights_of_another(tmp_path: Path) -> None:
    """The path counts from the experiment file; the first evaluation is the other run's last."""
    first = fedsim.run(GIVEN, out=tmp_path / "lab")
    file = tmp_path / "lab" / "warm.yaml"
    block = {"name": "softmax", "weights": first.path.name}
    file.write_text(fedsim.load({**GIVEN, "model": block}).dump())
    second = fedsim.run(file, out=tmp_path)
    assert second.metrics()["accuracy"][0] == first.summary["accuracy"]
    assert second.metrics()["loss"][0] == first.summary["loss"]
    assert "notes" not in facts(second.path)
    again = fedsim.run(second.path / "experiment.yaml", out=tmp_path / "again")  # where no such folder is
    assert again.summary["run_hash"] == second.summary["run_hash"]


def test_it_is_the_content_that_counts(tmp_path: Path) -> None:
    """Equal weights in two forms and places are one start; others in the same place are another."""
    first = fedsim.run(GIVEN, out=tmp_path)
    state = {name: torch.from_numpy(array) for name, array in first.weights().items()}
    (tmp_path / "other").mkdir()
    one, two = write_pt(state, tmp_path), write_safetensors(state, tmp_path / "other")

    def run(path: Path) -> fedsim.Result:
        return fedsim.run(
            {**GIVEN, "model": {"name": "softmax", "weights": str(path)}}, out=tmp_path / "runs"
        )

    a, b = run(one), run(two)
    assert facts(a.path)["identity"] == facts(b.path)["identity"]
    assert a.summary["weights_hash"] == b.summary["weights_hash"] != first.summary["weights_hash"]
    shutil.copyfile(two, tmp_path / "same.safetensors")
    copied = run(tmp_path / "same.safetensors")
    assert copied.path.name == f"{b.path.name}-2"
    write_pt({name: 0.5 * one for name, one in state.items()}, tmp_path)
    c = run(one)
    assert facts(c.path)["identity"] != facts(a.path)["identity"]
    assert c.path.name[:-2] != a.path.name[:-2]


def test_what_was_taken_stands_in_the_record(tmp_path: Path) -> None:
    state = {"1.weight": torch.zeros(10, 64)}
    block = {"name": "softmax", "weights": str(write_pt(state, tmp_path)), "strict": False}
    run = fedsim.run({**GIVEN, "model": block}, out=tmp_path)
    [note] = facts(run.path)["notes"]
    assert note == "the model has taken 1 of 2 entries of a.pt; missing: [1.bias]"


def test_a_mistake_names_the_key(tmp_path: Path) -> None:
    file = tmp_path / "warm.yaml"
    file.write_text(fedsim.load({**GIVEN, "model": {"name": "mlp", "weights": "nowhere.pt"}}).dump())
    done = CliRunner().invoke(app, ["check", str(file)])
    assert done.exit_code == 2
    assert "model.weights: " in done.stderr
    assert (
        "nowhere.pt: there is no such file; name a .safetensors or .pt file, or a run's folder" in done.stderr
    )
    assert done.stderr.startswith(f"{file}:")


def test_a_model_without_weights_is_written_as_before() -> None:
    dumped = fedsim.load(GIVEN).dump()
    assert "model: softmax" in dumped
    assert "strict" not in dumped
    given = {**GIVEN, "model": {"name": "mlp", "hidden": 3, "strict": False, "weights": "a.pt"}}
    block = fedsim.load(given).model
    assert (block.params, block.weights, block.strict) == ({"hidden": 3}, "a.pt", False)


def stopped(out: Path, round: int) -> Path:
    """Return the folder of a run that ended early."""

    def progress(now: fedsim.api.Progress) -> None:
        if now.round == round:
            raise fedsim.RunError("as if killed")

    record = {"report": False, "weights_every": 1, "checkpoint": {"every_rounds": 2}}
    with pytest.raises(fedsim.RunError):
        fedsim.run({**GIVEN, "record": record}, out=out, progress=progress)
    [folder] = out.iterdir()
    return folder


def test_the_models_of_rounds_are_kept(tmp_path: Path) -> None:
    run = fedsim.run({**GIVEN, "record": {"report": False, "weights_every": 2}}, out=tmp_path)
    assert [file.name for file in sorted((run.path / "models").iterdir())] == [
        "000002.safetensors",
        "000004.safetensors",
    ]
    shorter = fedsim.run(GIVEN, out=tmp_path, stop__rounds=2)
    for name, array in run.weights(2).items():
        np.testing.assert_array_equal(array, shorter.weights()[name])
    for name, array in run.weights(4).items():
        np.testing.assert_array_equal(array, run.weights()[name])
    with pytest.raises(ValueNeeded, match=r"record.weights_every says which"):
        run.weights(3)
    plain = fedsim.run(GIVEN, out=tmp_path)
    assert plain.summary["run_hash"] == run.summary["run_hash"]
    assert not (plain.path / "models").exists()


def test_they_are_kept_through_a_break(tmp_path: Path) -> None:
    """The run stops in round 3; those of the rounds 1 and 2 are not computed again, and still there."""
    folder = stopped(tmp_path / "broken", 3)
    run = fedsim.resume(folder)
    whole = fedsim.run({**GIVEN, "record": {"report": False, "weights_every": 1}}, out=tmp_path)
    for round in (1, 2, 3, 4):
        one, two = (found.path / "models" / f"{round:06d}.safetensors" for found in (run, whole))
        assert one.read_bytes() == two.read_bytes()


def test_peers_models_of_rounds_are_their_average(tmp_path: Path) -> None:
    given = {**GIVEN, "strategy": {"name": "dpsgd", "local": GIVEN["strategy"]["local"]}, "topology": "ring"}
    run = fedsim.run({**given, "record": {"report": False, "weights_every": 2}}, out=tmp_path)
    for name, array in run.weights(4).items():
        np.testing.assert_array_equal(array, run.weights()[name])
    started_from = {"name": "softmax", "weights": str(run.path / "models" / "000002.safetensors")}
    warm = fedsim.run({**given, "model": started_from}, out=tmp_path)
    assert warm.metrics()["accuracy"][0] > fedsim.run(given, out=tmp_path).metrics()["accuracy"][0]


def test_weights_that_are_others_now_stop_a_run_from_going_on(tmp_path: Path) -> None:
    first = fedsim.run(GIVEN, out=tmp_path / "first")
    file = tmp_path / "start.safetensors"
    shutil.copyfile(first.path / "weights.safetensors", file)

    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 3:
            raise fedsim.RunError("as if killed")

    given = {**GIVEN, "model": {"name": "softmax", "weights": str(file)}}
    with pytest.raises(fedsim.RunError):
        fedsim.run(given, out=tmp_path / "broken", progress=progress)
    [folder] = (tmp_path / "broken").iterdir()
    other = fedsim.run(GIVEN, out=tmp_path / "other", seed=3)
    kept = file.read_bytes()
    shutil.copyfile(other.path / "weights.safetensors", file)
    with pytest.raises(ConfigError, match="model: softmax: is not that of the run"):
        fedsim.resume(folder)
    file.unlink()
    with pytest.raises(ConfigError, match=r"weights: .*there is no such file"):
        fedsim.resume(folder)
    file.write_bytes(kept)
    assert fedsim.resume(folder).summary["run_hash"] == fedsim.run(given, out=tmp_path).summary["run_hash"]
