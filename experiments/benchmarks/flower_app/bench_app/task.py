"""What every engine does alike: the model, a client's images, and local training as anybody would write it."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.learn.models.builtin import build, lenet5, mlp
from fedsim.rng import stream

MODELS: dict[str, Any] = {"lenet5": lenet5, "mlp": mlp}
BATCH, LR = 32, 0.05

State = dict[str, torch.Tensor]


@functools.cache
def case() -> dict[str, Any]:
    """Return the case: model, clients, per_round, samples, rounds, and the folder of images and time marks."""
    torch.set_num_threads(1)
    return dict(json.loads(os.environ["FEDSIM_FLOWER_BENCH"]))


def make() -> nn.Module:
    return build(MODELS[case()["model"]], {}, (1, 28, 28), 10, stream(0, "bench model"))


@functools.cache
def images() -> tuple[np.ndarray, np.ndarray]:
    folder = Path(case()["folder"])
    return np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy")


def train(state: State, client: int, round: int) -> tuple[State, float]:
    """Return the weights after one epoch on a client's images, and the last batch's loss."""
    samples, module = case()["samples"], make()
    own = slice(client * samples, (client + 1) * samples)
    x, y = (torch.from_numpy(np.array(part[own])) for part in images())
    module.load_state_dict(state)
    optimiser = torch.optim.SGD(module.parameters(), lr=LR)
    places = torch.from_numpy(stream(0, "bench batches", client, round).permutation(samples))
    for batch in places.split(BATCH):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(x[batch]), y[batch])
        loss.backward()
        optimiser.step()
    return module.state_dict(), float(loss.detach())


def mark(label: str) -> None:
    """Write down what time it really is: the usual clocks show a simulated server its own. Then wait, if asked to."""
    folder = Path(case()["folder"])
    with (folder / "marks").open("a") as file:
        file.write(f"{label} {time.clock_gettime(time.CLOCK_REALTIME)}\n")
    if (folder / "gate").exists():  # a pipe: somebody says when to go on
        (folder / "gate").read_text()
