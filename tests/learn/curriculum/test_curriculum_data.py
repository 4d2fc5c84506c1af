"""The expert, partitions by difficulty, known noise, and CIFAR's files."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import BadValue, ConfigError
from fedsim.learn.build import build
from fedsim.learn.curriculum.expert import Judge, consistency
from fedsim.learn.curriculum.noisy import noisy
from fedsim.learn.curriculum.partition import by_difficulty
from fedsim.learn.data.cifar import cifar10, cifar100
from fedsim.running.build import prepare
from fedsim.running.described import ordering
from fedsim.running.threads import limited
from fedsim.spec.experiment import load
from fedsim.spec.local import Expert

FILE = {
    "data": {"name": "noisy", "of": "digits", "levels": [0.0, 0.3, 0.9], "clients": 10},
    "model": "softmax",
    "expert": {"epochs": 2},
    "strategy": "fedavg",
    "stop": {"rounds": 1},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    with limited(1):
        yield tmp_path / "cache"


def judge(seed=0, settings=None, x=None):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((60, 4)).astype(np.float32)) if x is None else x
    torch_module = nn.Linear(4, 3)
    with torch.no_grad():
        torch_module.weight.fill_(0.1)
        torch_module.bias.zero_()
    return Judge(torch_module, x, x[:, :3].argmax(1), settings or Expert(epochs=3), seed)


def test_the_expert_is_trained_once_and_kept_by_content(cache):
    first = judge().losses
    assert [file.name for file in cache.iterdir()] == [f"expert-{judge().digest()[:32]}.npy"]
    again = judge()
    again._train = None  # whoever asks again reads the file
    assert np.array_equal(again.losses, first)
    others = [judge(seed=1), judge(settings=Expert(epochs=2)), judge(x=judge().x + 1)]
    assert len({one.digest() for one in (judge(), *others)}) == 4


def test_a_damaged_file_is_written_anew(cache):
    first = judge().losses
    file = next(cache.iterdir())
    file.write_bytes(b"nothing")
    assert np.array_equal(judge().losses, first)
    assert np.array_equal(np.load(file), first)


def test_a_folder_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file" / "inside"))
    assert judge().losses.shape == (60,)


def test_the_first_step_of_the_expert_by_hand():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        for layer in module:
            layer.weight.copy_(torch.eye(2))
    Judge(module, x, y, Expert(epochs=1, smoothing=0.0, weight_decay=0.1, lr=0.01), 0)._train()
    p = 1 / (1 + np.exp(1))  # the probability of the wrong class for logits (1, 0)
    slope = np.array([[-p], [p]]) @ np.array([[1.0, 0.0]])
    assert np.allclose(module[1].weight.detach(), np.eye(2) - 0.1 * (slope + 0.1 * np.eye(2)), atol=1e-6)
    assert np.allclose(module[0].weight.detach(), np.eye(2) - 0.01 * (slope + 0.1 * np.eye(2)), atol=1e-6)


def test_an_expert_finds_noise_hard():
    learner, dataset, _ = build(load({**FILE, "expert": {"epochs": 10}}))
    losses = learner.engine.data.expert_losses().double().numpy()
    means = [losses[dataset.difficulty == level].mean() for level in (0.0, 0.3, 0.9)]
    assert means[0] < means[1] < means[2]


@given(
    st.integers(1, 12),
    st.integers(12, 200),
    st.sampled_from(["inc", "dec", "rand"]),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_curriculum_property_19_every_sample_belongs_to_one_client(clients, total, order, share, classes):
    rng = np.random.default_rng(total)
    labels, hard = rng.integers(0, 4, total), rng.random(total)
    more = {"alpha": 0.3} if classes else {}
    parts = by_difficulty(labels, clients, order=order, share=share, rng=rng, difficulty=lambda: hard, **more)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(total))
    assert all(len(part) for part in parts)
    if not classes:
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    if order != "rand" and share == 1 and not classes:
        means = [hard[part].mean() for part in parts]
        assert means == sorted(means, reverse=order == "dec")


@pytest.mark.parametrize("order", ["inc", "dec"])
def test_curriculum_property_19_sorted_clients_are_homogeneous(order):
    rng = np.random.default_rng(0)
    labels, hard = rng.integers(0, 4, 1000), rng.exponential(size=1000)
    parts, mixed = (
        by_difficulty(labels, 10, order=one, rng=rng, difficulty=lambda: hard) for one in (order, "rand")
    )
    between, within = consistency(hard, parts)
    assert consistency(hard, mixed)[1] > 5 * within
    assert between > 5 * consistency(hard, mixed)[0]


def test_in_each_class_easy_samples_go_to_the_first_clients():
    rng = np.random.default_rng(0)
    labels, hard = np.repeat([0, 1], 200), rng.random(400)
    parts = by_difficulty(labels, 4, alpha=2.0, rng=rng, difficulty=lambda: hard)
    for label in (0, 1):
        own = [hard[part[labels[part] == label]] for part in parts]
        own = [one for one in own if len(one)]
        assert all(a.max() <= b.min() for a, b in itertools.pairwise(own))


def test_a_share_of_the_samples_is_sorted():
    rng, hard = np.random.default_rng(0), np.arange(1000.0)
    parts = by_difficulty(np.zeros(1000, int), 10, share=0.5, rng=rng, difficulty=lambda: hard)
    means = [hard[part].mean() for part in parts]
    assert means[:5] == sorted(means[:5])
    assert means[4] - means[0] > 600
    assert max(means[5:]) - min(means[5:]) < 200


def test_consistency_by_hand():
    losses = np.array([0.0, 2.0, 4.0, 10.0])
    assert consistency(losses, [np.array([0, 1]), np.array([2, 3])]) == (
        3.0,
        2.0,
    )  # means 1 and 7; sds 1 and 3


def test_the_noise_is_what_it_says():
    clean, noised = (noisy(of="digits", levels=levels, clients=1, seed=3) for levels in ([0.0], [0.5, 0.0]))
    change = (noised.x - clean.x).flatten(1)
    assert torch.equal(noised.x_test, clean.x_test)
    assert np.array_equal(change.abs().amax(1).numpy() > 0, noised.difficulty > 0)
    assert abs(float(change[noised.difficulty > 0].std()) - 0.5) < 0.01
    assert abs((noised.difficulty > 0).mean() - 0.5) < 0.05
    assert torch.equal(noised.x, noisy(of="digits", levels=[0.5, 0.0], clients=1, seed=3).x)


def test_parameters_of_the_inner_dataset_are_its_own():
    small = noisy(of={"name": "digits", "test_share": 0.5}, levels=[0.1], clients=1, seed=0)
    assert abs(len(small.y) - len(small.y_test)) <= 10
    for of, key in ({"name": "digits", "test_shear": 0.5}, "of.test_shear"), ("digitz", "of"):
        with pytest.raises(BadValue) as caught:
            noisy(of=of, levels=[0.1], clients=1, seed=0)
        assert caught.value.key == key
    with pytest.raises(BadValue, match="at least 1 level"):
        noisy(of="digits", levels=[], clients=1, seed=0)
    again = {"name": "noisy", "of": "digits", "levels": [0.1]}
    with pytest.raises(BadValue, match=r"has noise already; give all levels to one"):
        noisy(of=again, levels=[0.2], clients=1, seed=0)


def test_an_experiment_sorts_by_what_is_known_or_by_the_expert():
    for by in ("known", "expert"):
        setup = prepare(
            load({**FILE, "data": {**FILE["data"], "partition": {"name": "by_difficulty", "by": by}}})
        )
        found = ordering(setup)
        levels = [setup.dataset.difficulty[own].mean() for own in setup.owned]
        assert levels[0] < levels[-1]
        if by == "known":
            assert np.diff(levels).min() > -1e-12
            assert found["difficulty_within_clients"] < 0.1 < found["difficulty_between_clients"]


def test_samples_of_unknown_difficulty_are_refused():
    data = {"name": "digits", "clients": 2, "partition": {"name": "by_difficulty", "by": "known"}}
    with pytest.raises(ConfigError, match="does not know how hard"):
        prepare(load({**FILE, "data": data}))
    rng, nothing = np.random.default_rng(0), lambda: np.zeros(3)
    for change, words in (
        ({"by": "known", "known": np.zeros(2)}, r"\(2,\) known difficulties for 3"),
        ({"minimum": 2}, "need 4 samples, and there are 3"),
        ({"alpha": 1.0, "labels": np.zeros(3)}, "divides classes"),
    ):
        with pytest.raises(BadValue, match=words):
            by_difficulty(
                **{"labels": np.zeros(3, int), "clients": 2, "rng": rng, "difficulty": nothing, **change}
            )


def test_numbers_have_no_error_rate():
    local = {"curriculum": {"measure": "error"}}
    file = {**FILE, "data": {"name": "quadratic", "clients": 2}, "model": "linear"}
    with pytest.raises(ConfigError, match=r"strategy.local.curriculum.measure: error: needs classes"):
        prepare(load({**file, "strategy": {"name": "fedavg", "local": local}}))


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write(folder, name, labels, rows, binary, key, coarse):
    if binary:
        columns = [np.zeros(len(labels))] * coarse + [labels]
        content = np.column_stack([*columns, rows]).astype(np.uint8).tobytes()
        (folder / f"{name}.bin").write_bytes(content)
    else:
        (folder / name).write_bytes(pickle.dumps({"data": rows, key: list(map(int, labels))}))


@pytest.mark.parametrize("binary", [True, False])
def test_both_versions_of_cifar_are_read(tmp_path, binary):
    ten = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    hundred = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    ten.mkdir()
    hundred.mkdir()
    for number in range(1, 6):
        write(ten, f"data_batch_{number}", np.arange(4) + number, pixels(4, number), binary, "labels", 0)
    write(ten, "test_batch", np.arange(3), pixels(3, 9), binary, "labels", 0)
    write(hundred, "train", np.array([99, 7]), pixels(2, 1), binary, "fine_labels", 1)
    write(hundred, "test", np.array([0]), pixels(1, 2), binary, "fine_labels", 1)
    small, big = cifar10(normalise=False, root=tmp_path), cifar100(root=tmp_path)
    assert small.y.tolist() == [n + i for n in range(1, 6) for i in range(4)]
    assert small.x_test.shape == (3, 3, 32, 32)
    assert torch.equal(
        (small.x[5] * 255).round().to(torch.uint8).flatten(), torch.from_numpy(pixels(4, 2)[1])
    )
    assert big.y.tolist() == [99, 7]
    blue = pixels(2, 1)[1, 2048:].reshape(32, 32)
    assert np.allclose(big.x[1, 2], (blue / 255 - 0.441) / 0.276, atol=1e-5)


def test_damaged_and_dangerous_files_are_refused(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for content, words in (
        (b"\x80", "damaged"),
        (pickle.dumps({"data": pixels(1, 0)}), "damaged: 'fine_labels'"),
        (pickle.dumps(print), "asks for builtins.print"),
        (pickle.dumps({"data": pixels(1, 0) / 255, "fine_labels": [1]}), "its values are not bytes"),
        (pickle.dumps({"data": pixels(1, 0), "fine_labels": [0.7]}), "its values are not bytes"),
        (pickle.dumps({"data": pixels(1, 0), "fine_labels": [256]}), "its values are not bytes"),
        (
            pickle.dumps({"data": pixels(2, 0).reshape(4, -1), "fine_labels": [1, 2]}),
            "2 labels and pixels of shape",
        ),
    ):
        (folder / "train").write_bytes(content)
        with pytest.raises(BadValue, match=words):
            cifar100(root=tmp_path)
    (folder / "train").unlink()
    with pytest.raises(BadValue, match="its file was not found"):
        cifar100(root=tmp_path)
    (folder / "train").mkdir()
    with pytest.raises(BadValue, match=r"cannot be read \(Is a directory\)"):
        cifar100(root=tmp_path)


def test_wrong_labels_are_of_another_class_and_the_hardest():
    clean, wrong = (
        noisy(of="digits", levels=[0.0, 0.5], wrong=share, clients=1, seed=3) for share in (0.0, 0.3)
    )
    changed = (clean.y != wrong.y).numpy()
    assert changed.sum() == round(0.3 * len(clean.y))
    assert np.array_equal(wrong.difficulty[changed], np.full(changed.sum(), 1.5))
    assert np.array_equal(wrong.difficulty[~changed], clean.difficulty[~changed])
    assert set(wrong.y.tolist()) == set(range(10))
    assert len(set(((wrong.y - clean.y) % 10)[changed].tolist())) == 9
    assert torch.equal(clean.x, wrong.x)
    assert torch.equal(clean.y_test, wrong.y_test)


def test_numbers_have_no_wrong_labels():
    with pytest.raises(BadValue, match="labels can be wrong"):
        noisy(of={"name": "quadratic", "dimension": 3}, levels=[0.0], wrong=0.1, clients=2, seed=0)


def test_how_clients_differ_is_told_wherever_anybody_knows():
    noise = {"data": FILE["data"] | {"partition": "iid"}}
    plain = {"data": {"name": "digits", "clients": 2, "test_share": 0.8}}
    local = {"curriculum": {"score": "expert"}}
    pool = {"name": "curriculum", "rounds": 2, "score": "expert"}
    by_chance = {**pool, "order": "random"}
    asks = {"name": "fedprox", "mu": 0.0, "participants": 2}
    for change, unit in (
        (noise, "known difficulty"),
        (plain, None),
        ({**plain, "strategy": {**asks, "local": local}}, "loss of the expert"),
        (
            {**plain, "strategy": {**asks, "local": {"curriculum": {"order": "random", "score": "expert"}}}},
            None,
        ),
        ({**plain, "strategy": {**asks, "select": pool}}, "loss of the expert"),
        ({**plain, "strategy": {**asks, "select": by_chance}}, None),
    ):
        setup = prepare(load({**FILE, "expert": {"epochs": 1}, **change}))
        found = ordering(setup)
        assert found.get("difficulty_unit") == unit
        if unit:
            own = found["difficulty_of_clients"]
            assert len(own) == len(setup.owned)
            assert found["difficulty_between_clients"] == pytest.approx(np.std(own), abs=1e-8)


@pytest.mark.parametrize(("rounds", "clock"), [(None, "step"), (7, "round")])
def test_the_pace_has_an_end(rounds, clock):
    """A client has 100 samples: passes of 30, 56 and 100 make 3, 6 and 10 steps; the last is begun within 11."""
    local = {"epochs": 1, "batch_size": 10, "curriculum": {"floor": 1, "b": 0.3, "rounds": rounds}}
    data = {"name": "quadratic", "samples": 100, "clients": 2, "partition": "natural"}
    setup = prepare(
        load({**FILE, "data": data, "model": "linear", "strategy": {"name": "fedavg", "local": local}})
    )
    pace = ordering(setup)["pace"]
    assert (pace["clock"], pace["end"]) == (clock, 8 if rounds else 3 + 6 + 10)
    assert rounds or pace["sizes"] == [(0, 30), (3, 53), (9, 100)]
