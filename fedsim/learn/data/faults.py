"""Faults of data: some clients' training samples have wrong labels, or noise in their inputs, from the start.

A fault is a class whose fields are its parameters. It changes the samples that a client trains on; what the client has
held out as its own test, the validation set and the test stay as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsim.chosen import Chosen
from fedsim.errors import BadValue, few
from fedsim.learn.data.dataset import PADDING, Dataset
from fedsim.learn.several import Several
from fedsim.parts import Positive

PositiveShare = Annotated[float, Field(gt=0, le=1)]
Indices = NDArray[np.int64]


@dataclass(kw_only=True)
class DataFault(Chosen):
    """Something that is wrong with the training samples of some clients.

    Args:
        share: what share of a client's labels or samples it hits, to the nearest whole number, above 0.
    """

    share: PositiveShare

    def apply(self, data: Dataset, owned: Sequence[Indices], rng: np.random.Generator) -> Dataset:
        """Return the data with the fault in them, and a note of it.

        Args:
            data: the data, which stay as they are.
            owned: the training samples of each client.
            rng: the fault's own stream.

        Raises:
            BadValue: if it does not fit the data, or hits nobody.
        """
        self.check(data)
        clients = range(len(owned))
        hit = self.among(clients, clients, rng)
        x = data.x.map(Tensor.clone) if isinstance(data.x, Several) else data.x.clone()
        made: Dataset = replace(data, x=x if self.touches_inputs else data.x, y=data.y.clone())
        count = sum(self.strike(made, owned[client], rng) for client in hit)
        if not count:
            raise BadValue("share", self.share, "hits no sample of any of these clients")
        told = f"{count} {self.what} of the clients {few(hit)}"
        return replace(made, note="; ".join(filter(None, (data.note, told))))

    touches_inputs = False
    what = "samples are faulty"

    @abstractmethod
    def check(self, data: Dataset) -> None:
        """Refuse data that it does not fit."""

    @abstractmethod
    def strike(self, data: Dataset, own: Indices, rng: np.random.Generator) -> int:
        """Change samples of one client in place, and return how many labels or samples that were."""

    def some(self, places: Indices, rng: np.random.Generator) -> Indices:
        """Return the share of some places that is hit."""
        return np.sort(rng.permutation(places)[: round(self.share * len(places))])


@dataclass(kw_only=True)
class LabelFlips(DataFault):
    """Labels of some clients' training samples are wrong; padding stays padding.

    Args:
        to: which class stands there instead: any other one, each as likely, or the next one, and the first after the
            last.
    """

    to: Literal["random", "next"] = "random"
    what = "labels are wrong, in training,"

    def check(self, data: Dataset) -> None:
        """Refuse data without classes."""
        if data.classes < 2:
            raise BadValue("name", "label_flips", f"needs classes, and {data.name} has numbers to predict")

    def strike(self, data: Dataset, own: Indices, rng: np.random.Generator) -> int:
        """Flip labels."""
        width = data.y[0].numel()
        every = (own[:, None] * width + np.arange(width)).reshape(-1)
        flat = data.y.view(-1)
        hit = torch.from_numpy(self.some(every[(flat[torch.from_numpy(every)] != PADDING).numpy()], rng))
        steps = (
            rng.integers(1, data.classes, len(hit)) if self.to == "random" else np.ones(len(hit), np.int64)
        )
        flat[hit] = (flat[hit] + torch.from_numpy(steps)) % data.classes
        return len(hit)


@dataclass(kw_only=True)
class FeatureNoise(DataFault):
    """The floating-point inputs of some clients' training samples have Gaussian noise in them.

    Args:
        std: standard deviation of the noise on each number, in the unit of the inputs.
        share: what share of a client's samples it hits.
    """

    std: Positive
    share: PositiveShare = 1.0
    touches_inputs = True
    what = "samples have noise, in training,"

    def check(self, data: Dataset) -> None:
        """Refuse data without floating-point inputs."""
        if not any(part.is_floating_point() for part in _inputs(data)):
            raise BadValue("name", "feature_noise", f"needs floating-point inputs, and {data.name} has none")

    def strike(self, data: Dataset, own: Indices, rng: np.random.Generator) -> int:
        """Add noise."""
        hit = torch.from_numpy(self.some(own, rng))
        for part in _inputs(data):
            if part.is_floating_point():
                noise = torch.from_numpy(rng.normal(0.0, self.std, (len(hit), *part.shape[1:])))
                part[hit] += noise.to(part.dtype)
        return len(hit)


def _inputs(data: Dataset) -> list[Tensor]:
    return list(data.x.parts) if isinstance(data.x, Several) else [data.x]
