"""Datasets: training and test samples, and which client each sample naturally belongs to.

A dataset is a function that returns a :class:`Dataset`. Nothing is downloaded: files are read from the data
folder, in torchvision's layout.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import BadValue, did_you_mean
from fedsim.learn.data import idx
from fedsim.learn.data.dataset import LOSSES as LOSSES
from fedsim.learn.data.dataset import Dataset as Dataset
from fedsim.learn.data.partition import stratified_split as stratified_split
from fedsim.machine import require_room
from fedsim.rng import stream


def digits(*, test_share: float = 0.2, seed: int) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; needs no files.

    Args:
        test_share: the part of each class that is kept for the test.
        seed: which samples those are.

    Returns:
        Images [N, 1, 8, 8] in float32 between 0 and 1, in 10 classes.

    Raises:
        BadValue: if the share is not between 0 and 1.

    References:
        Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI machine learning repository, 1998.

    >>> digits(seed=0).shape
    (1, 8, 8)
    """
    pixels, labels = _digits()
    x = torch.from_numpy(pixels.reshape(-1, 8, 8).astype(np.float32) / 16).unsqueeze(1)
    return _split("digits", x, torch.from_numpy(labels.astype(np.int64)), 10, test_share, seed)


def _digits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pixels [N, 64] and labels [N], from the file that lies in scikit-learn if it is where it used to be."""
    spec = importlib.util.find_spec("sklearn")  # finds it without loading it
    file = (
        Path(spec.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if spec is not None else None
    )
    if file is not None and file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits  # takes a second, for that file

    source = load_digits()
    return source.data, source.target


def mnist(*, test_share: float = 0.2, normalise: bool = True, seed: int, root: Path | None = None) -> Dataset:
    """Return MNIST's handwritten digits, read from ``MNIST/raw`` in the data folder.

    Args:
        test_share: the part of each class that is kept for the test; only used where the training files are
            absent and the test files (``t10k-…``) are all there is.
        normalise: whether to subtract the mean 0.1307 and divide by the standard deviation 0.3081.
        seed: which samples the test keeps.
        root: the data folder; else the environment variable ``FEDSIM_DATA``.

    Returns:
        Images [N, 1, 28, 28] in float32, in 10 classes.

    Raises:
        BadValue: if the files are not found (key ``name``) or damaged.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998.

    >>> mnist(seed=0, root=Path("nowhere"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: mnist: its files were not found: nowhere/MNIST/raw/t10k-images-idx3-ubyte...
    """
    files = _Files("mnist", "MNIST", "train", "t10k", 0.1307, 0.3081)
    return _images(files, test_share, normalise, seed, root)


def fashion_mnist(
    *, test_share: float = 0.2, normalise: bool = True, seed: int, root: Path | None = None
) -> Dataset:
    """Return Fashion-MNIST's pictures of clothes, read from ``FashionMNIST/raw`` in the data folder.

    Args:
        test_share, normalise, seed, root: as for :func:`mnist`; mean 0.2860, standard deviation 0.3530.

    Returns:
        Images [N, 1, 28, 28] in float32, in 10 classes.

    Raises:
        BadValue: if the files are not found (key ``name``) or damaged.

    References:
        Xiao et al., Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms, 2017.

    >>> fashion_mnist(seed=0, root=Path("nowhere"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: fashion-mnist: its files were not found: nowhere/FashionMNIST/raw/t10k-...
    """
    files = _Files("fashion-mnist", "FashionMNIST", "train", "t10k", 0.2860, 0.3530)
    return _images(files, test_share, normalise, seed, root)


EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
"""The splits of EMNIST and their numbers of classes."""


def emnist(
    *,
    split: str = "digits",
    test_share: float = 0.2,
    normalise: bool = True,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return EMNIST's handwritten characters, read from ``EMNIST/raw`` in the data folder.

    The files hold images transposed and number the letters from 1; here they are upright and count from 0.

    Args:
        split: one of :data:`EMNIST_CLASSES`.
        test_share, normalise, seed, root: as for :func:`mnist`; mean 0.1751, standard deviation 0.3332.

    Returns:
        Images [N, 1, 28, 28] in float32.

    Raises:
        BadValue: if there is no such split, or the files are not found (key ``name``) or damaged.

    References:
        Cohen et al., EMNIST: extending MNIST to handwritten letters, IJCNN 2017.

    >>> emnist(split="letter", seed=0)
    Traceback (most recent call last):
    fedsim.errors.BadValue: split: letter: no such split of EMNIST; did you mean letters?
    """
    if split not in EMNIST_CLASSES:
        raise BadValue("split", split, "no such split of EMNIST", did_you_mean(split, EMNIST_CLASSES))
    train, test, letters = f"emnist-{split}-train", f"emnist-{split}-test", split == "letters"
    files = _Files("emnist", "EMNIST", train, test, 0.1751, 0.3332, EMNIST_CLASSES[split], int(letters), True)
    return _images(files, test_share, normalise, seed, root)


def synthetic(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    dimension: int = 60,
    classes: int = 10,
    max_samples: int = 1000,
    clients: int,
    seed: int,
) -> Dataset:
    """Return Synthetic(alpha, beta): clients with different models and differently placed inputs.

    Client k labels x by the largest entry of W x + b, where all entries of W and b are drawn from N(u_k, 1)
    and u_k from N(0, alpha). Its inputs are drawn from N(v, S) with S_jj = j^-1.2, all entries of v from
    N(B_k, 1) and B_k from N(0, beta). Here alpha and beta are variances, as the paper's notation reads; its
    program uses them as standard deviations, which is the same for 0 and 1 only.

    Args:
        alpha: how much clients' mean weights differ; as u_k raises all of W x + b alike, no label changes.
        beta: how much the clients' inputs differ.
        dimension: the length of an input.
        classes: how many classes there are.
        max_samples: the most that a client has; without this limit, 50 and a log-normal(4, 2) number more.
        clients: how many natural clients there are.
        seed: which models and inputs. A client's data does not depend on the number of clients.

    Returns:
        Inputs [N, dimension] in float32. The last fifth of each client's samples, rounded, is the test.

    Raises:
        BadValue: if a parameter is out of range.

    References:
        Li et al., Federated optimization in heterogeneous networks, MLSys 2020, section 5.1.

    >>> data = synthetic(clients=3, seed=0, max_samples=60)
    >>> data.x.shape, data.x_test.shape, np.bincount(data.groups).tolist()
    (torch.Size([144, 60]), torch.Size([36, 60]), [48, 48, 48])
    """
    _at_least(0, alpha=alpha, beta=beta)
    _at_least(1, dimension=dimension, clients=clients)
    _at_least(2, classes=classes)
    _at_least(5, max_samples=max_samples)
    samples = clients * min(453.0, max_samples)  # without the limit, 50 + exp(4 + 2) are the mean
    require_room("dimension", dimension, 16.0 * dimension * classes, "one client's model")
    require_room("clients", clients, samples * (8 * dimension + 32), f"about {samples:.3g} samples")
    train, test = [], []
    for client in range(clients):
        rng = stream(seed, "synthetic", client)
        inputs, labels = _synthetic_client(alpha, beta, dimension, classes, max_samples, rng)
        kept = len(labels) - round(0.2 * len(labels))
        train.append((inputs[:kept], labels[:kept]))
        test.append((inputs[kept:], labels[kept:]))
    whose, theirs = (np.repeat(np.arange(clients), [len(y) for _, y in part]) for part in (train, test))
    x, y, x_test, y_test = (torch.from_numpy(np.concatenate(part)) for part in (*zip(*train), *zip(*test)))
    return Dataset("synthetic", x, y, x_test, y_test, classes, whose, test_groups=theirs)


def quadratic(
    *,
    dimension: int = 10,
    samples: int = 20,
    conditioning: float = 10.0,
    heterogeneity: float = 1.0,
    clients: int,
    seed: int,
) -> Dataset:
    """Return least squares with a known optimum: client i minimises f_i(w) = mean_s 0.5 (a_s w - b_s)^2.

    The Hessian of the mean of all f_i has exactly the eigenvalues 1 to 1/conditioning, in geometric steps.
    Client i's targets are exact for its own point w_i = w + heterogeneity z_i with standard normal w and z_i,
    so f_i(w_i) = 0, and without heterogeneity all clients agree.

    Args:
        dimension: the number of weights.
        samples: the number of samples of each client.
        conditioning: the largest over the smallest of those eigenvalues, at least 1.
        heterogeneity: the standard deviation of the clients' own points.
        clients: how many natural clients there are; ``clients * samples`` must reach ``dimension``.
        seed: which problem.

    Returns:
        Inputs [clients * samples, dimension] and targets in float64. The test is the training set, so that
        test loss minus the loss at ``optimum`` is the distance to the best value.

    Raises:
        BadValue: if a parameter is out of range.

    >>> data = quadratic(dimension=2, clients=3, seed=0)
    >>> gradient = data.x.T @ (data.x @ data.optimum - data.y) / 60
    >>> bool(gradient.abs().max() < 1e-12)
    True
    """
    _at_least(0, heterogeneity=heterogeneity)
    _at_least(1, dimension=dimension, samples=samples, conditioning=conditioning, clients=clients)
    total = clients * samples
    if total < dimension:
        rule = f"{clients} clients x {samples} samples must reach the dimension {dimension}"
        raise BadValue("samples", samples, rule)
    require_room("samples", samples, 4 * 8.0 * total * dimension, f"{total} samples of {dimension} numbers")
    rng = stream(seed, "quadratic")
    # Orthonormal columns make the mean Hessian a.T @ a / total exactly the diagonal matrix asked for.
    columns = np.linalg.qr(rng.standard_normal((total, dimension))).Q
    a = columns * np.sqrt(total * np.geomspace(1, 1 / conditioning, dimension))
    points = rng.standard_normal(dimension) + heterogeneity * rng.standard_normal((clients, dimension))
    groups = np.repeat(np.arange(clients), samples)
    b = (a * points[groups]).sum(axis=1)
    # All clients have equally many samples, so the mean over clients is the mean over samples.
    optimum = torch.from_numpy(np.linalg.solve(a.T @ a, a.T @ b))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return Dataset("quadratic", x, y, x, y, 0, groups, "half_square", optimum)


@dataclass(frozen=True)
class _Files:
    """Where a dataset's IDX files are and what they mean."""

    name: str
    folder: str
    train: str
    test: str
    mean: float
    deviation: float
    classes: int = 10
    first_label: int = 0
    transposed: bool = False


def _images(files: _Files, test_share: float, normalise: bool, seed: int, root: Path | None) -> Dataset:
    raw = idx.folder(files.name, files.folder, root)
    x_test, y_test = _part(files, raw, files.test, normalise)
    if not idx.has_part(files.name, raw, files.train):
        dataset = _split(files.name, x_test, y_test, files.classes, test_share, seed)
        return replace(dataset, note=_stands_in(dataset))
    x, y = _part(files, raw, files.train, normalise)
    return Dataset(files.name, x, y, x_test, y_test, files.classes)


def _stands_in(dataset: Dataset) -> str:
    train, test = len(dataset.x), len(dataset.x_test)
    return (
        f"{dataset.name} trains on {train:,} images of its own test set because the training images are not there; "
        f"accuracy is over the other {test:,} and cannot be compared with published ones"
    )


def _part(files: _Files, raw: Path, part: str, normalise: bool) -> tuple[Tensor, Tensor]:
    images, labels = idx.labelled_images(files.name, raw, part)
    x = torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)
    x = x.transpose(2, 3).contiguous() if files.transposed else x
    if normalise:
        x.sub_(files.mean).div_(files.deviation)
    return x, torch.from_numpy(labels.astype(np.int64) - files.first_label)


def _split(name: str, x: Tensor, y: Tensor, classes: int, test_share: float, seed: int) -> Dataset:
    train, test = stratified_split(y.numpy(), test_share, stream(seed, "split"))
    return Dataset(name, x[train], y[train], x[test], y[test], classes)


def _synthetic_client(
    alpha: float, beta: float, dimension: int, classes: int, max_samples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    size = int(min(50 + rng.lognormal(4, 2), max_samples))
    model_mean, input_mean = rng.normal(0, [alpha**0.5, beta**0.5])
    weights = rng.normal(model_mean, 1, (dimension, classes))
    bias = rng.normal(model_mean, 1, classes)
    centre = rng.normal(input_mean, 1, dimension)
    deviations = np.arange(1, dimension + 1) ** -0.6
    x = rng.normal(centre, deviations, (size, dimension))
    return x.astype(np.float32), (x @ weights + bias).argmax(axis=1)


def _at_least(least: int, **values: float) -> None:
    for key, value in values.items():
        if not least <= value < float("inf"):
            raise BadValue(key, value, f"must be a finite number of at least {least}")
