"""What docs/own/model.md shows works, and so do models of other libraries where they are installed."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.data.dataset import Dataset
from fedsim.parts import names
from tests.learn import odd_models

PAGE = (Path(__file__).parents[3] / "docs" / "own" / "model.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def texts(*, clients, seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(20, size=(8 * clients, 6)))
    return Dataset("texts", x, x[:, 0] % 2, x, x[:, 0] % 2, 2)


def pictures(*, clients, seed):
    y = torch.arange(8 * clients) % 10
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(y), 3, 32, 32)).astype(np.float32))
    return Dataset("pictures", x, y, x, y, 10)


def experiment(data, model, **changes):
    return {
        "data": {"name": f"tests.learn.models.test_own_model:{data}", "clients": 2},
        "model": model,
        "strategy": {"name": "fedavg", "local": {"steps": 1, "batch_size": 4, "lr": 0.05}},
        "stop": {"rounds": 1},
        "compute": {"device": "cpu"},
        "record": {"report": False},
        **changes,
    }


@pytest.mark.slow
def test_the_script_runs_and_its_model_is_kept(tmp_path):
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 ['accuracy', 'macro_f1', 'top_k']\n"
    (run,) = (tmp_path / "runs").iterdir()
    kept = (run / "objects.py").read_text()
    assert kept.startswith("class Net(nn.Module):")
    assert kept.rstrip() in blocks("python")[0]
    said = yaml.safe_load((run / "experiment.yaml").read_text())
    assert said["model"] == {"name": "__main__:Net", "width": 8}


def test_a_class_of_a_module_is_its_path(tmp_path):
    given = experiment("texts", odd_models.Net)
    given["data"]["name"] = odd_models.points
    loaded = fedsim.load(given)
    assert (loaded.model.name, loaded.data.name) == (
        "tests.learn.odd_models:Net",
        "tests.learn.odd_models:points",
    )
    by_keyword = fedsim.load(experiment("texts", "softmax"), model=odd_models.Net)
    assert by_keyword.model == loaded.model
    result = fedsim.run(given, out=tmp_path)
    assert not (result.path / "objects.py").exists()  # the module is where it was


@pytest.mark.parametrize("made", [lambda: 0, type("Net", (), {"__qualname__": "test.<locals>.Net"})])
def test_what_has_no_path_is_refused_in_one_line(made):
    with pytest.raises(
        ConfigError, match="cannot be found by its name; define it at the top of a module"
    ) as caught:
        fedsim.load(experiment("texts", made))
    assert len(str(caught.value).splitlines()) == 1


def test_all_that_is_built_in_is_named():
    for kind in ("models", "losses", "metrics", "optimisers", "schedules", "augmentations"):
        for name in names(kind):
            assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize("number", [0, 1])
def test_models_of_images_by_their_path(number, tmp_path):
    found = [text for text in blocks("yaml") if "torchvision" in text or "timm" in text]
    shown = [yaml.safe_load(text)["model"] for text in found]
    assert len(shown) == 2
    block = shown[number]
    pytest.importorskip(block["name"].partition(":")[0].partition(".")[0])
    result = fedsim.run(experiment("pictures", block), out=tmp_path)
    assert np.isfinite(result.summary["loss"])
    assert any("running_mean" in name for name in result.weights())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_adapters_are_trained_and_sent_alone(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    shown = types.ModuleType("shown")
    exec(compile(blocks("python")[1], "model.md", "exec"), vars(shown))
    monkeypatch.setitem(sys.modules, "shown", shown)
    runs = [
        fedsim.run(experiment("texts", {"name": "shown:Text", "words": 20, "rank": rank}), out=tmp_path)
        for rank in (0, 2)
    ]
    assert runs[1].summary["bytes_up"] < runs[0].summary["bytes_up"] / 5
    frozen = [name for name in runs[1].weights() if name.endswith("word_embeddings.weight")]
    assert len(frozen) == 1  # saved, and not sent
