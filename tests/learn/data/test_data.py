"""Datasets: what is refused, the read ones by hand-made files, the generated ones by their mathematics."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.curriculum import noisy as curriculum_data
from fedsim.learn.data import datasets as data

DATA = Path(os.environ.get("FEDSIM_DATA") or Path(__file__).parents[4] / "shared" / "data")


def small(**changes):
    fields = {
        "name": "small",
        "x": torch.zeros(3, 2),
        "y": torch.tensor([0, 1, 1]),
        "x_test": torch.ones(2, 2),
        "y_test": torch.tensor([1, 0]),
        "classes": 2,
    }
    return data.Dataset(**{**fields, **changes})


def write(folder, part, images, labels, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for what, values in (("images-idx3", images), ("labels-idx1", labels)):
        values = np.asarray(values, np.uint8)
        content = (
            bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
        )
        name = f"{part}-{what}-ubyte"
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def same(a, b):
    return all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("x", "y", "x_test", "y_test"))


def test_a_sound_dataset_is_accepted():
    dataset = small(groups=np.array([1, 0, 1]), optimum=torch.zeros(4))
    assert dataset.shape == (2,)
    assert dataset.loss == "cross_entropy"
    regression = small(y=torch.zeros(3), y_test=torch.zeros(2), classes=0, loss="half_square")
    assert regression.classes == 0


def test_a_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().name = "other"


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("x", {"x": torch.zeros(0, 2), "y": torch.zeros(0, dtype=torch.int64)}, "at least 1 sample"),
        ("x", {"x": torch.tensor([[0.0, 1.0]] * 2 + [[0.0, torch.inf]])}, "finite"),
        ("x", {"x": torch.zeros(3, 2, dtype=torch.bool)}, "floating-point or whole"),
        ("x_test", {"x_test": torch.full((2, 2), torch.nan)}, "finite"),
        ("x_test", {"x_test": torch.zeros(2, 3)}, r"the shape of x, \(2,\)"),
        ("x_test", {"x_test": torch.zeros(0, 2), "y_test": torch.zeros(0, dtype=torch.int64)}, "at least 1"),
        ("y", {"y": torch.tensor([0, 1])}, "each of the 3 samples of x"),
        ("y", {"y": torch.tensor([[0], [1], [2]])}, "y: 2: labels must be between 0 and 1, for 2 classes"),
        ("y", {"y": torch.tensor(0)}, "each of the 3 samples of x"),
        ("y", {"y": torch.tensor([0, 1, 2])}, "y: 2: labels must be between 0 and 1, for 2 classes"),
        ("y", {"y": torch.tensor([0, -1, 1])}, "y: -1: labels"),
        ("y", {"y": torch.tensor([0, 1, 1], dtype=torch.int32)}, "int64"),
        ("y_test", {"y_test": torch.tensor([0, 5])}, "y_test: 5: labels"),
        ("y_test", {"y_test": torch.tensor([0])}, "each of the 2 samples of x_test"),
        ("y", {"classes": 0, "loss": "half_square"}, "targets must be finite floating-point"),
        ("classes", {"classes": 0}, "at least 2 classes"),
        ("classes", {"classes": 1}, "at least 2 classes"),
        ("classes", {"classes": 1, "loss": "half_square"}, "all others need 0"),
        ("loss", {"loss": "crossentropy"}, "did you mean cross_entropy"),
        ("groups", {"groups": np.array([0, 1])}, "one group for each of the 3 samples"),
        ("groups", {"groups": np.array([0, 2, 2])}, "numbered 0 to 1 without a gap"),
        ("optimum", {"optimum": torch.zeros(2, 2)}, "flat vector"),
        ("optimum", {"optimum": torch.tensor([torch.nan])}, "finite"),
    ],
)
def test_an_unsound_dataset_is_refused(key, changes, words):
    with pytest.raises(BadValue, match=words) as caught:
        small(**changes)
    assert caught.value.key == key


def test_digits():
    dataset = data.digits(seed=0)
    assert dataset.x.shape[1:] == (1, 8, 8)
    assert len(dataset.x) + len(dataset.x_test) == 1797
    assert dataset.x.dtype == torch.float32
    assert (dataset.x.min(), dataset.x.max()) == (0, 1)
    # The whole set has 178 zeros, 182 ones, 177 twos …: a fifth of each, rounded.
    assert torch.bincount(dataset.y_test).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_split_depends_on_the_seed_only():
    assert same(data.digits(seed=3), data.digits(seed=3))
    assert not torch.equal(data.digits(seed=3).x, data.digits(seed=4).x)
    assert len(data.digits(test_share=0.5, seed=0).y_test) == pytest.approx(1797 / 2, abs=5)
    with pytest.raises(BadValue, match=r"test_share: 1\.5"):
        data.digits(test_share=1.5, seed=0)


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_reads_both_parts_as_given(tmp_path, compressed):
    images = np.zeros((2, 28, 28))
    images[0, 3, 5] = 255
    write(tmp_path / "MNIST" / "raw", "train", images, [7, 0], compressed)
    write(tmp_path / "MNIST" / "raw", "t10k", images[::-1], [1, 2], compressed)
    dataset = data.mnist(seed=0, root=tmp_path)
    assert dataset.x.shape == (2, 1, 28, 28)
    assert (dataset.y.tolist(), dataset.y_test.tolist(), dataset.classes) == ([7, 0], [1, 2], 10)
    # (1 - 0.1307) / 0.3081 and (0 - 0.1307) / 0.3081
    assert dataset.x[0, 0, 3, 5].item() == pytest.approx(2.821487, abs=1e-6)
    assert dataset.x[0, 0, 5, 3].item() == pytest.approx(-0.424213, abs=1e-6)
    assert torch.equal(dataset.x_test, dataset.x.flip(0))
    raw = data.mnist(seed=0, root=tmp_path, normalise=False)
    assert raw.x.sum() == 1


def test_mnist_splits_the_test_files_where_they_are_alone(tmp_path):
    images = np.arange(50)[:, None, None] * np.ones((50, 2, 2))
    write(tmp_path / "MNIST" / "raw", "t10k", images, np.arange(50) % 5)
    dataset = data.mnist(seed=0, root=tmp_path, normalise=False)
    assert torch.bincount(dataset.y).tolist() == [8] * 5
    assert torch.bincount(dataset.y_test).tolist() == [2] * 5
    numbers = (torch.cat([dataset.x, dataset.x_test])[:, 0, 0, 0] * 255).round().int()
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.equal(numbers % 5, torch.cat([dataset.y, dataset.y_test]))
    assert len(data.mnist(seed=0, root=tmp_path, test_share=0.5).y_test) == 25
    assert dataset.note == (
        "mnist trains on 40 images of its own test set because the training images are not there; "
        "accuracy is over the other 10 and cannot be compared with published ones"
    )
    noisy = curriculum_data.noisy(of="mnist", levels=[0.1], clients=2, seed=0, root=tmp_path)
    assert noisy.note == dataset.note


@pytest.mark.parametrize("left", ["images-idx3-ubyte", "labels-idx1-ubyte"])
@pytest.mark.parametrize(
    ("load", "folder", "train", "test"),
    [
        (data.mnist, "MNIST", "train", "t10k"),
        (data.fashion_mnist, "FashionMNIST", "train", "t10k"),
        (data.emnist, "EMNIST", "emnist-digits-train", "emnist-digits-test"),
    ],
)
def test_a_part_of_the_training_files_is_refused(tmp_path, load, folder, train, test, left):
    raw = tmp_path / folder / "raw"
    for part in (train, test):
        write(raw, part, np.zeros((4, 28, 28)), [0, 0, 1, 1])
    (raw / f"{train}-{left}").unlink()
    with pytest.raises(BadValue, match=rf"but not {train}-{left}\(\.gz\)"):
        load(seed=0, root=tmp_path)
    (raw / f"{train}-{({'images-idx3-ubyte', 'labels-idx1-ubyte'} - {left}).pop()}").unlink()
    assert "because the training images are not there" in load(seed=0, root=tmp_path).note
    write(raw, train, np.zeros((4, 28, 28)), [0, 0, 1, 1])
    assert load(seed=0, root=tmp_path).note == ""


def test_fashion_mnist_has_its_own_folder_and_constants(tmp_path):
    for part in ("train", "t10k"):
        write(tmp_path / "FashionMNIST" / "raw", part, np.full((1, 28, 28), 255), [9])
    dataset = data.fashion_mnist(seed=0, root=tmp_path)
    torch.testing.assert_close(dataset.x, torch.full((1, 1, 28, 28), (1 - 0.2860) / 0.3530))


def test_emnist_is_turned_upright_and_letters_count_from_zero(tmp_path):
    images = np.zeros((2, 28, 28))
    images[0, 3, 5] = 255
    for part in ("train", "test"):
        write(tmp_path / "EMNIST" / "raw", f"emnist-letters-{part}", images, [1, 26])
    dataset = data.emnist(split="letters", seed=0, root=tmp_path, normalise=False)
    assert dataset.x[0, 0, 5, 3] == 1
    assert dataset.x.sum() == 1
    assert dataset.x.is_contiguous()
    assert (dataset.y.tolist(), dataset.classes) == ([0, 25], 26)
    normalised = data.emnist(split="letters", seed=0, root=tmp_path)
    assert normalised.x.min().item() == pytest.approx(-0.1751 / 0.3332)


@pytest.mark.parametrize(("split", "classes"), [("digits", 10), ("balanced", 47), ("byclass", 62)])
def test_emnist_labels_of_other_splits_stay(tmp_path, split, classes):
    for part in ("train", "test"):
        write(tmp_path / "EMNIST" / "raw", f"emnist-{split}-{part}", np.zeros((2, 28, 28)), [0, classes - 1])
    dataset = data.emnist(split=split, seed=0, root=tmp_path)
    assert (dataset.y.tolist(), dataset.classes) == ([0, classes - 1], classes)


def test_a_damaged_file_is_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write(raw, "t10k", np.zeros((4, 2, 2)), [0, 0, 1, 1])
    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(BadValue, match="holds 15 bytes of values") as caught:
        data.mnist(seed=0, root=tmp_path)
    assert caught.value.value == str(images)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    for part in ("train", "t10k"):
        write(tmp_path / "MNIST" / "raw", part, np.zeros((1, 28, 28)), [10])
    with pytest.raises(BadValue, match="y: 10: labels must be between 0 and 9"):
        data.mnist(seed=0, root=tmp_path)


def test_missing_files_are_listed(monkeypatch, tmp_path):
    with pytest.raises(BadValue) as caught:
        data.mnist(seed=0, root=tmp_path)
    plain = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    assert (caught.value.key, caught.value.value) == ("name", "mnist")
    assert caught.value.rule == f"its files were not found: {plain}, {plain}.gz"
    assert "FEDSIM_DATA" in caught.value.hint
    assert "data.root" in caught.value.hint
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    with pytest.raises(BadValue, match="no data folder is set"):
        data.emnist(seed=0)


def test_train_images_without_labels_are_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        write(raw, part, np.zeros((2, 28, 28)), [0, 1])
    (raw / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(BadValue, match=r"but not train-labels-idx1-ubyte\(\.gz\)"):
        data.mnist(seed=0, root=tmp_path)


def test_the_data_folder_can_come_from_the_environment(monkeypatch, tmp_path):
    for part in ("train", "t10k"):
        write(tmp_path / "MNIST" / "raw", part, np.zeros((2, 28, 28)), [0, 1])
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert data.mnist(seed=0).y.tolist() == [0, 1]


def test_the_real_mnist():
    if not (DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").exists():
        pytest.skip("MNIST's test files are not in the data folder (set FEDSIM_DATA)")
    dataset = data.mnist(seed=0, root=DATA)
    assert len(dataset.x) + len(dataset.x_test) in (10000, 70000)
    # The constants are those of the training files; the test files come close.
    assert abs(dataset.x.mean()) < 0.02
    assert abs(dataset.x.std() - 1) < 0.02
    # Images and labels belong together: the nearest class mean finds most digits.
    means = torch.stack([dataset.x[dataset.y == label].mean(0).flatten() for label in range(10)])
    guesses = torch.cdist(dataset.x_test.flatten(1), means).argmin(1)
    assert (guesses == dataset.y_test).float().mean() > 0.75


def test_synthetic_sizes_and_split():
    dataset = data.synthetic(clients=30, seed=0, max_samples=200)
    train = np.bincount(dataset.groups)
    assert len(train) == 30
    # 50 to 200 samples each, a fifth of them for the test.
    assert train.min() >= 40
    assert train.max() == 160
    assert len(dataset.y_test) == pytest.approx(len(dataset.y) / 4, abs=15)
    assert (np.diff(dataset.groups) >= 0).all()
    assert (dataset.x.dtype, dataset.shape, dataset.classes) == (torch.float32, (60,), 10)


def test_synthetic_client_does_not_depend_on_the_others():
    few, many = (data.synthetic(clients=clients, seed=5, max_samples=100) for clients in (2, 6))
    own = many.groups < 2
    assert torch.equal(few.x, many.x[own])
    assert torch.equal(few.y, many.y[own])
    assert not torch.equal(few.x[:10], data.synthetic(clients=2, seed=6, max_samples=100).x[:10])


def test_synthetic_inputs_have_the_variances_of_the_paper():
    spread = data.synthetic(clients=200, dimension=4, classes=3, max_samples=60, seed=1, beta=0.0)
    within = np.array([spread.x.numpy()[spread.groups == k].var(axis=0, ddof=1) for k in range(200)]).mean(0)
    # 200 clients x 48 samples: a relative error of about sqrt(2 / 9400), 1.5 %.
    assert within == pytest.approx(np.arange(1, 5) ** -1.2, rel=0.06)


@pytest.mark.parametrize("beta", [0.0, 0.25, 4.0])
def test_synthetic_beta_is_a_variance(beta):
    # A client's inputs have entries with means from N(B, 1), B from N(0, beta): over clients the average of d
    # entries varies by beta + 1/d, and by the samples' own noise, below 1 / (40 d).
    dataset = data.synthetic(clients=1000, dimension=60, max_samples=10, beta=beta, seed=2)
    rows = dataset.x.mean(1).numpy()
    centres = np.bincount(dataset.groups, weights=rows) / np.bincount(dataset.groups)
    assert centres.var() == pytest.approx(beta + 1 / 60, rel=0.2)


def test_synthetic_labels_follow_one_linear_model_for_each_client():
    dataset = data.synthetic(clients=1, dimension=3, classes=3, max_samples=400, seed=4)
    model = torch.nn.Linear(3, 3)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(dataset.x), dataset.y)
        loss.backward()
        return loss

    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimiser.step(closure)
    assert (model(dataset.x).argmax(1) == dataset.y).float().mean() > 0.99


def test_synthetic_alpha_changes_no_label():
    near, far = (data.synthetic(clients=5, alpha=alpha, max_samples=100, seed=7) for alpha in (0.0, 100.0))
    assert same(near, far)


def test_synthetic_clients_disagree():
    dataset = data.synthetic(clients=2, alpha=0.0, beta=0.0, max_samples=1000, seed=3)
    shares = [np.bincount(dataset.y.numpy()[dataset.groups == k], minlength=10) for k in range(2)]
    shares = [share / share.sum() for share in shares]
    assert np.abs(shares[0] - shares[1]).sum() > 0.5


@pytest.mark.parametrize(
    ("key", "value"),
    [("alpha", -1.0), ("beta", float("nan")), ("classes", 1), ("dimension", 0), ("max_samples", 4)],
)
def test_synthetic_refuses(key, value):
    with pytest.raises(BadValue) as caught:
        data.synthetic(**{key: value}, clients=2, seed=0)
    assert caught.value.key == key


def gradients(problem, w):
    for client in range(problem.groups.max() + 1):
        own = problem.groups == client
        a, b = problem.x[own], problem.y[own]
        yield a.T @ (a @ w - b) / own.sum()


def test_quadratic_has_the_optimum_it_claims():
    problem = data.quadratic(dimension=7, samples=12, clients=6, seed=1)
    each = torch.stack(list(gradients(problem, problem.optimum)))
    assert each.mean(0).abs().max() < 1e-13
    assert each.norm(dim=1).min() > 0.1
    assert (problem.loss, problem.classes, problem.x.dtype) == ("half_square", 0, torch.float64)
    assert torch.equal(problem.x, problem.x_test)
    assert torch.equal(problem.y, problem.y_test)
    assert np.bincount(problem.groups).tolist() == [12] * 6


@pytest.mark.parametrize("conditioning", [1.0, 10.0, 1000.0])
def test_quadratic_has_the_condition_it_claims(conditioning):
    problem = data.quadratic(dimension=3, samples=2, clients=2, conditioning=conditioning, seed=1)
    eigenvalues = torch.linalg.eigvalsh(problem.x.T @ problem.x / 4)
    expected = torch.tensor([1 / conditioning, conditioning**-0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-9, atol=1e-12)


def test_quadratic_gradient_descent_arrives():
    problem = data.quadratic(dimension=4, clients=3, conditioning=5.0, seed=2)
    w = torch.zeros(4, dtype=torch.float64)
    for _ in range(200):
        w = w - torch.stack(list(gradients(problem, w))).mean(0)
    assert (w - problem.optimum).norm() < 1e-12


def test_quadratic_without_heterogeneity_is_one_problem():
    problem = data.quadratic(heterogeneity=0.0, clients=4, seed=3)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(problem, problem.optimum))


def own_points(problem):
    owns = [problem.groups == client for client in range(problem.groups.max() + 1)]
    return [torch.linalg.lstsq(problem.x[own], problem.y[own, None])[0][:, 0] for own in owns]


def test_quadratic_heterogeneity_is_the_distance_between_the_clients_own_points():
    one, three = (
        data.quadratic(dimension=5, clients=40, heterogeneity=heterogeneity, seed=4)
        for heterogeneity in (1.0, 3.0)
    )
    near, far = torch.stack(own_points(one)), torch.stack(own_points(three))
    torch.testing.assert_close(far - far[0], 3 * (near - near[0]))
    # 40 standard normal points in 5 dimensions: the variance is known to about sqrt(2 / 195), 10 %.
    assert near.var(dim=0).mean().item() == pytest.approx(1, abs=0.4)
    for client, point in enumerate(own_points(one)):
        own = one.groups == client
        assert (one.x[own] @ point - one.y[own]).abs().max() < 1e-12


def test_quadratic_in_one_dimension_by_hand():
    problem = data.quadratic(dimension=1, samples=3, clients=2, seed=0)
    x, y = problem.x[:, 0], problem.y
    assert problem.optimum.item() == pytest.approx(((x * y).sum() / (x * x).sum()).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("key", "params"),
    [
        ("samples", {"dimension": 10, "samples": 4}),
        ("samples", {"samples": 0}),
        ("dimension", {"dimension": 0}),
        ("conditioning", {"conditioning": 0.5}),
        ("heterogeneity", {"heterogeneity": -1.0}),
    ],
)
def test_quadratic_refuses(key, params):
    with pytest.raises(BadValue) as caught:
        data.quadratic(**params, clients=2, seed=0)
    assert caught.value.key == key


@pytest.mark.parametrize("name", ["digits", "synthetic", "quadratic"])
def test_called_by_name_with_what_the_engine_supplies(name):
    part, supplied = parts.find("datasets", name), {"clients": 3, "seed": 1, "root": None}
    first, again = (parts.call(part, {}, supplied) for _ in range(2))
    assert same(first, again)
    assert first.name == name
    assert not torch.equal(first.x, parts.call(part, {}, {**supplied, "seed": 2}).x)
    with pytest.raises(BadValue, match="unknown key"):
        parts.call(part, {"nonsense": 1}, supplied)


def test_the_digits_are_scikit_learns_with_and_without_loading_it(monkeypatch):
    from sklearn.datasets import load_digits

    source = load_digits()
    pixels, labels = data._digits()
    assert np.array_equal(pixels, source.data)
    assert np.array_equal(labels, source.target)
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)  # its file lies elsewhere
    assert np.array_equal(data._digits()[0], source.data)


def test_padding_in_a_sequence_of_labels_is_no_class():
    y = torch.tensor([[0, 1], [1, -100], [0, 0]])
    data = small(y=y, x=torch.zeros(3, 2, dtype=torch.int64), x_test=torch.zeros(2, 2, dtype=torch.int64))
    assert torch.equal(data.y, y)
    with pytest.raises(BadValue, match="y: -100"):
        small(y=torch.tensor([0, 1, -100]))


def test_the_sample_that_is_not_finite_is_named_among_many():
    x = torch.zeros(10_000, 2)
    x[9_000, 1] = torch.inf
    with pytest.raises(BadValue, match="sample 9000 has NaN or infinity"):
        small(x=x, y=torch.zeros(10_000, dtype=torch.int64))
