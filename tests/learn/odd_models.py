"""Models with hidden state or randomness, and data for them."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedsim.learn.data.datasets import Dataset

WIDTH = 6


def points(*, clients, seed):
    """Return three classes of points [8 clients, 4] that differ in their means."""
    rng = np.random.default_rng(seed)
    y = torch.arange(8 * clients) % 3
    x = torch.from_numpy(rng.standard_normal((len(y), 4)).astype(np.float32)) + y[:, None]
    return Dataset("points", x, y, x.flip(0), y.flip(0), 3)


class Net(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.inside(self.first(x)))

    def inside(self, h):
        return h if self.between is None else self.between(h)


def dropout():
    return Net(nn.Dropout(0.5))


def rrelu():
    return Net(nn.RReLU())


class FunctionalDropout(Net):
    def inside(self, h):
        return F.dropout(h, 0.5, self.training)


class Noise(Net):
    def inside(self, h):
        return h + 0.5 * torch.randn_like(h) if self.training else h


class Gumbel(Net):
    def inside(self, h):
        return F.gumbel_softmax(h) if self.training else h.softmax(-1)


class Depth(Net):
    """Leaves its middle out by chance."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(WIDTH, WIDTH)

    def inside(self, h):
        return h + self.middle(h).relu() if not self.training or torch.rand(()) < 0.5 else h


class Attention(Net):
    def inside(self, h):
        h = h[:, None, :, None] * torch.ones(4)
        return F.scaled_dot_product_attention(h, h, h, dropout_p=0.3 * self.training)[:, 0, :, 0]


class Heads(Net):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True)

    def inside(self, h):
        h = h[:, None] * torch.ones(1, 3, 1)
        return self.heads(h, h, h)[0][:, 0]


class Recurrent(Net):
    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.layers = kind(1, WIDTH, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.last(self.layers(x[..., None])[0][:, -1])


class OnlyInTraining(Net):
    """Useless once it is trained: its accuracy is that of always saying the first class."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training else 0 * y


class Constants(Net):
    """A frozen layer, and constants of two types."""

    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)
        self.register_buffer("scale", torch.rand(WIDTH))
        self.register_buffer("order", torch.arange(WIDTH).flip(0))
        self.register_buffer("shift", torch.ones(WIDTH), persistent=False)

    def inside(self, h):
        return h[:, self.order] * self.scale + self.shift


class Shapes(Net):
    """Has numbers without a dimension, and a constant whose rows are not one after the other in memory."""

    def __init__(self):
        super().__init__()
        self.gain, self.fixed = (
            nn.Parameter(torch.rand(())),
            nn.Parameter(torch.rand(()), requires_grad=False),
        )
        self.register_buffer("mix", torch.rand(WIDTH, WIDTH).T)

    def inside(self, h):
        return self.gain * (h @ self.mix) + self.fixed


class Table(Net):
    """Computes a constant when it is called for the first time."""

    table = None

    def inside(self, h):
        if self.table is None:
            self.table = torch.linspace(0, 1, WIDTH).to(h)
        return h + self.table


class Shows(Net):
    """Leaves its inside for others to look at."""

    def inside(self, h):
        self.seen = h
        return h.tanh()


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.two.weight = self.one.weight

    def inside(self, h):
        return self.two(self.one(h).tanh())


class Centred(Net):
    """Mixes the samples of a batch."""

    def inside(self, h):
        return h - h.mean(0)


class AlwaysDrops(Net):
    def inside(self, h):
        return F.dropout(h)


class Counts(Net):
    """Counts batches in an integer buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))

    def inside(self, h):
        self.batches += 1
        return h * (1 + 0.1 * self.batches)


class RunningMean(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=False)

    def inside(self, h):
        if self.training:
            self.mean.copy_(0.9 * self.mean + 0.1 * h.detach().mean(0))
        return h - self.mean


class PlainMean(Net):
    """Keeps a running mean as an attribute, and uses it in evaluation alone."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(WIDTH)

    def inside(self, h):
        if self.training:
            self.mean = 0.9 * self.mean.to(h) + 0.1 * h.detach().mean(0)
            return h
        return h - self.mean


class PlainCount(Net):
    """Warms up: the first hundred calls are the same."""

    calls = 0

    def inside(self, h):
        self.calls += 1
        return h if self.calls < 100 else 2 * h


class Carries(Net):
    """Goes on from the hidden state of the last batch."""

    hidden = None

    def inside(self, h):
        if self.hidden is not None and self.hidden.shape == h.shape:
            h = h + self.hidden
        self.hidden = h.detach().tanh()
        return h


class FirstBatch(Net):
    """Takes its scale from the first batch."""

    scale = None

    def inside(self, h):
        if self.scale is None:
            self.scale = h.detach().abs().mean(0)
        return h / self.scale


class CountsInATensor(Net):
    """Counts its calls where a layer might keep what it was given, and acts on it late."""

    def __init__(self):
        super().__init__()
        self.calls = torch.zeros(2)

    def inside(self, h):
        self.calls = self.calls + 1
        return h if self.calls[0] < 1000 else 0 * h


class KeepsEveryInput(Net):
    """Never forgets."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def inside(self, h):
        self.seen.append(torch.zeros(h.shape))
        return h


class DrawsForMany(Net):
    """Draws in evaluation, but not for a batch as small as those it is tried out with."""

    def inside(self, h):
        return F.dropout(h, 0.5) if len(h) > 4 and not self.training else h


class KeepsWeights(Net):
    """Computes something of its weights once."""

    kept = None

    def inside(self, h):
        if self.kept is None:
            self.kept = self.last.weight.detach().sum(0)
        return h * self.kept


class Renormalised(Net):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4, max_norm=20.0)  # no weight is that long in the beginning

    def forward(self, x):
        return super().forward(self.words(x.abs().long()[:, 0] % 5))


class PythonsRandom(Net):
    def inside(self, h):
        return h * random.random() if self.training else h


class NumPysRandom(Net):
    def inside(self, h):
        return h * float(np.random.rand()) if self.training else h


class OwnGenerator(Net):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def inside(self, h):
        return h + torch.rand(WIDTH, generator=self.generator).to(h) if self.training else h


class SystemsRandom(Net):
    def inside(self, h):
        return h * (1 + int.from_bytes(os.urandom(6), "big") / 2**48) if self.training else h


CALLS = []


class Remembers(Net):
    """Has its state outside of itself."""

    def inside(self, h):
        CALLS.append(1)
        return h * len(CALLS)


class ChangesMode(Net):
    def forward(self, x):
        self.first.train(not self.first.training)
        return super().forward(x)


class NumPysWeights(Net):
    def __init__(self):
        super().__init__()
        self.last.weight.data = torch.from_numpy(np.random.rand(3, WIDTH)).float()


def spectral():
    return Net(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))


def instance_norm():
    norm = nn.InstanceNorm1d(1, track_running_stats=True)
    return Net(nn.Sequential(nn.Unflatten(1, (1, WIDTH)), norm, nn.Flatten()))


def batch_norm():
    return Net(nn.BatchNorm1d(WIDTH))


class Fails(Net):
    def __init__(self, *, when, error="KeyError"):
        super().__init__()
        self.when, self.kind = when, {"KeyError": KeyError, "SystemExit": SystemExit}[error]
        if when == "made":
            raise self.kind(7)

    def inside(self, h):
        if self.when == ("training" if self.training else "evaluation"):
            raise self.kind(7)
        return h


class FailsLater(Net):
    """Cannot be used for samples that are not among the first."""

    def __init__(self, *, error="SystemExit"):
        super().__init__()
        self.kind = {"KeyError": KeyError, "SystemExit": SystemExit}[error]

    def forward(self, x):
        if self.training and len(x) == 5:
            raise self.kind(0)
        return super().forward(x)


class NotANumber(Net):
    def __init__(self, *, where="outputs"):
        super().__init__()
        self.where = where
        if where == "weights":
            nn.init.constant_(self.last.bias, float("nan"))

    def inside(self, h):
        if self.where == "outputs":
            return h.abs().neg().log()
        return (h - h.detach()).sqrt() if self.where == "gradient" else h


class Partly(Net):
    """Keeps a part in evaluation mode, and returns nothing from train()."""

    def __init__(self):
        super().__init__(nn.Dropout(0.9))

    def train(self, mode=True):
        super().train(mode)
        self.between.eval()


class Seeds(Net):
    """Seeds torch itself."""

    def inside(self, h):
        torch.manual_seed(0)
        return h


class Checkpointed(Net):
    """Computes its middle once more in the backward pass."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def inside(self, h):
        return checkpoint(lambda h: self.two(self.one(h).tanh()).tanh(), h, use_reentrant=False)


class Aside(Net):
    """Holds a weight in a list, too, and uses that."""

    def __init__(self):
        super().__init__()
        self.weights = [self.last.weight]

    def forward(self, x):
        return F.linear(self.first(x), self.weights[0], self.last.bias)


class Late(Net):
    """Does nothing odd but in training, with batches larger than those of the trial."""

    def __init__(self, *, what):
        super().__init__()
        self.what = what
        self.register_buffer("count", torch.zeros(()))

    def inside(self, h):
        if self.training and len(h) == 5:
            if self.what == "draws":
                return F.dropout(h)
            self.count += 1
        return h


class FailsInEvaluation(Net):
    def __init__(self, *, error):
        super().__init__()
        self.kind = {"KeyError": KeyError, "SystemExit": SystemExit}[error]

    def inside(self, h):
        if len(h) == 24 and not self.training:
            raise self.kind(3)
        return h


ONE = Net()


def always_the_same():
    """Return one object every time."""
    return ONE
