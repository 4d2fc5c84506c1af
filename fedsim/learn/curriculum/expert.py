"""The expert: a model trained on all samples at once, whose losses say how hard each of them is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim import rng
from fedsim.errors import MISSING, BadValue
from fedsim.learn.draws import seeded
from fedsim.learn.raised import passes, told
from fedsim.learn.several import X, called, leaves
from fedsim.spec.local import Expert

log = logging.getLogger("fedsim")

VERSION = 2
"""Of the way in which an expert is trained; what an older one has found is not read."""

CACHE = "FEDSIM_CACHE"
"""The environment variable that names the folder of what is computed once; else ``~/.cache/fedsim``."""


class Judge:
    """Says how hard samples are, by an expert that is trained when it is asked for the first time.

    What it finds is kept in a file, named by all that it depends on: samples, model, settings and seed.

    Args:
        module: the model, with the weights that its training starts from; it is trained in place.
        x: the training inputs [N, …].
        y: their labels or targets [N].
        settings: how the expert is trained.
        seed: of its batches.
        loss: ``"cross_entropy"`` or ``"half_square"``.
    """

    def __init__(
        self,
        module: nn.Module,
        x: X,
        y: Tensor,
        settings: Expert,
        seed: int,
        loss: str = "cross_entropy",
    ) -> None:
        self.module, self.x, self.y = module, x, y
        self.settings, self.seed, self.classifies = settings, seed, loss == "cross_entropy"

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """The expert's loss on each sample [N]."""
        file = _folder() / f"expert-{self.digest()[:32]}.npy"
        with contextlib.suppress(OSError, ValueError):  # a file that is damaged is written anew
            found: NDArray[np.float64] = np.load(file, allow_pickle=False)
            if found.shape == (len(self.y),):
                return found
        log.info("training the expert for %d epochs", self.settings.epochs)
        try:
            with seeded(int(rng.stream(self.seed, "expert draws").integers(2**63)), self.y.device):
                self._train()
            found = self._judge()
        except BaseException as error:
            if passes(error):
                raise
            raise BadValue("expert", MISSING, f"cannot be trained: {told(error)}") from error
        _keep(file, found)
        return found

    def digest(self) -> str:
        """Return the SHA-256 of all that the losses depend on."""
        kinds = "+".join(str(part.dtype) for part in leaves(self.x))
        named = [str(self.module), self.settings.model_dump(), self.seed, self.classifies, kinds]
        digest = hashlib.sha256(json.dumps([VERSION, *named], sort_keys=True).encode())
        for tensor in (*leaves(self.x), self.y, *self.module.state_dict().values()):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.enable_grad()  # it may be asked for where others only score
    def _train(self) -> None:
        settings, step = self.settings, 0
        self.module.train()
        groups = _groups(self.module, settings)
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
        smoothing = settings.smoothing if self.classifies else 0.0
        for epoch in range(settings.epochs):
            order = rng.stream(self.seed, "expert", round=epoch).permutation(len(self.y))
            for index in torch.split(torch.from_numpy(order).to(self.y.device), settings.batch_size):
                optimizer.zero_grad()
                outputs = called(self.module, self.x[index])
                loss = _losses(outputs, self.y[index], self.classifies, smoothing).mean()
                torch.autograd.backward(loss)
                optimizer.step()
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = group["start"] * (1 + settings.lr_decay * step) ** -settings.lr_power

    @torch.no_grad()
    def _judge(self) -> NDArray[np.float64]:
        self.module.eval()
        pieces = zip(self.x.split(1000), torch.split(self.y, 1000))
        found = [_losses(called(self.module, x), y, self.classifies) for x, y in pieces]
        losses: NDArray[np.float64] = torch.cat(found).double().cpu().numpy()
        return losses


def _losses(outputs: Tensor, y: Tensor, classifies: bool, smoothing: float = 0.0) -> Tensor:
    if classifies:
        return nn.functional.cross_entropy(outputs, y, reduction="none", label_smoothing=smoothing)
    return 0.5 * (outputs - y) ** 2


def _groups(module: nn.Module, settings: Expert) -> list[dict[str, object]]:
    """Return the parameters in two groups: the last layer learns faster."""
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    last = list(layers[-1].parameters(recurse=False))
    ids = {id(one) for one in last}
    others = [one for one in module.parameters() if id(one) not in ids]
    found: list[dict[str, object]] = []
    for group, factor in ((others, 1.0), (last, settings.last_layer)):
        if group:
            found.append({"params": group, "lr": settings.lr * factor, "start": settings.lr * factor})
    return found


def _folder() -> Path:
    named = os.environ.get(CACHE)
    return Path(named) if named else Path.home() / ".cache" / "fedsim"


def _keep(file: Path, losses: NDArray[np.float64]) -> None:
    """Write the losses, in one step so that another run never reads half of them."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            np.save(part, losses)
        Path(part.name).replace(file)
    except OSError as error:
        log.info("the expert's losses are not kept: %s", error)


def consistency(losses: NDArray[np.float64], owned: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Return how much clients differ in difficulty, and how much the samples within a client do.

    Args:
        losses: how hard each sample is [N].
        owned: each client's samples.

    Returns:
        The standard deviation of the clients' mean losses, and the mean of their standard deviations.

    >>> consistency(np.array([1.0, 1.0, 3.0, 3.0]), [np.array([0, 1]), np.array([2, 3])])
    (1.0, 0.0)
    """
    own = [losses[one] for one in owned]
    return float(np.std([one.mean() for one in own])), float(np.mean([one.std() for one in own]))
