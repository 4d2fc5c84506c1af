"""The rows of the conformance suite: every strategy joins with one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.learn.data.datasets import Dataset, digits, quadratic
from fedsim.learn.models.builtin import linear

Gradient = Callable[[np.ndarray], np.ndarray]
Alone = Callable[[Gradient, np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class Row:
    """A strategy under test.

    Args:
        name: its name.
        params: parameters of a small run with part of the 8 clients.
        full: parameters with which all ``clients`` take part in every round.
        local: local training.
        topology: where it runs.
        steps_per_round: with full batches, one client and full participation: gradient-descent steps in each round.
        alone: what it does in 4 rounds of 3 steps with one client, where that is not gradient descent: from the
            gradient, the weights at the start and the learning rate to the weights at the end.
        down: the vectors that every client is sent in every round, by name, where that is all that a server sends.
        up: the vectors that it sends back.
        numbers: the numbers that it sends back.
        symmetric: whether it treats clients alike; where who meets whom depends on their ids, it does not.
        fewest: how many replies it needs to do anything.
        talks: whether anything is sent.
        at_zero: a model whose weights are zero at the start, with parts where it needs some.
        rests: parameters with which it stays at the optimum of clients that disagree, if it can.
        also: what its nodes do besides ``update``, by the strategy's attribute.
    """

    name: str
    params: dict[str, Any]
    full: dict[str, Any]
    local: dict[str, Any] = field(default_factory=lambda: {"epochs": 1, "batch_size": 8, "lr": 0.1})
    topology: Any = "star"
    steps_per_round: tuple[int, ...] = (3, 3, 3, 3)
    alone: Alone | None = None
    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ("num-examples", "train_loss")
    symmetric: bool = True
    fewest: int = 1
    rests: dict[str, Any] | None = None
    also: tuple[str, ...] = ()
    talks: bool = True
    at_zero: str = "conformance_rows:at_zero"


def descent(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """Take three steps of gradient descent."""
    for _ in range(3):
        x = x - lr * gradient(x)
    return x


def with_momentum(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedAvgM with β = 0.5: the heavy ball, whose steps are rounds."""
    velocity = np.zeros_like(x)
    for _ in range(4):
        velocity = 0.5 * velocity + x - descent(gradient, x, lr)
        x = x - velocity
    return x


def proximal(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedProx with μ = 0.7: each round is held near its own start."""
    for _ in range(4):
        start = x
        x = descent(lambda y, start=start: gradient(y) + 0.7 * (y - start), x, lr)
    return x


def dynamic(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedDyn with α = 0.5, where the server's memory is the client's."""
    kept = np.zeros_like(x)
    for _ in range(4):
        start = x
        y = descent(lambda y, start=start, kept=kept: gradient(y) - kept + 0.5 * (y - start), x, lr)
        kept = kept - 0.5 * (y - start)
        x = y - kept / 0.5
    return x


def carried_on(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedPAGE with p = 0: one step of length 3 lr along the gradient, then three rounds that carry it on."""
    g, before, x = gradient(x), x, x - 3 * lr * gradient(x)
    for _ in range(3):
        h, last, y = g + gradient(x) - gradient(before), x, x - lr * (g + gradient(x) - gradient(before))
        for _ in range(2):
            h, last = h + gradient(y) - gradient(last), y
            y = y - lr * h
        g, before, x = (x - y) / (3 * lr), x, y
    return x


def mimicking(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """MimeLite with β = 0.6: the momentum stands still in a round, and then takes in the gradient at its start."""
    momentum = np.zeros_like(x)
    for _ in range(4):
        start, held = x, momentum
        x = descent(lambda y, held=held: 0.4 * gradient(y) + 0.6 * held, x, lr)
        momentum = 0.4 * gradient(start) + 0.6 * momentum
    return x


def stale(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedAMD, alone: in the first round it caches its gradient, which all rounds after it begin with."""
    cache = gradient(x)
    for _ in range(3):
        before, direction, y = x, cache, x - lr * cache
        for _ in range(2):
            direction = direction + gradient(y) - gradient(before)
            before, y = y, y - lr * direction
        x = y
    return x


def mixing(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedAsync with α = 0.6 and μ = 0.7, alone and therefore never stale."""
    for _ in range(4):
        start = x
        y = descent(lambda y, start=start: gradient(y) + 0.7 * (y - start), x, lr)
        x = 0.4 * x + 0.6 * y
    return x


def buffering(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedBuff with a buffer of one and η = 0.5."""
    for _ in range(4):
        x = x + 0.5 * (descent(gradient, x, lr) - x)
    return x


def adaptive(moment: Callable[..., np.ndarray], eta: float, beta_1: float = 0.9, bias: bool = False) -> Alone:
    """FedAdagrad, FedAdam and FedYogi (Reddi et al., 2021): what differs is the second moment."""

    def alone(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
        m, v = np.zeros_like(x), np.zeros_like(x)
        for round in range(1, 5):
            delta = descent(gradient, x, lr) - x
            m, v = beta_1 * m + (1 - beta_1) * delta, moment(v, delta**2)
            rate = eta * np.sqrt(1 - 0.99 ** (round + 1)) / (1 - 0.9 ** (round + 1)) if bias else eta
            x = x + rate * m / (np.sqrt(v) + 1e-3)
        return x

    return alone


def head_then_body(gradient: Gradient, x: np.ndarray, lr: float) -> np.ndarray:
    """FedRep with τ = 2: two steps of the last layer, the last 8 x 10 + 10 weights, then three of all before it."""
    head = np.arange(len(x)) >= len(x) - 90
    for _ in range(4):
        for moving in (head, head, ~head, ~head, ~head):
            x = x - lr * moving * gradient(x)
    return x


ADAGRAD = adaptive(lambda v, square: v + square, 0.1, beta_1=0.0)
ADAM = adaptive(lambda v, square: 0.99 * v + 0.01 * square, 0.1, bias=True)
YOGI = adaptive(lambda v, square: v - 0.01 * square * np.sign(v - square), 0.01)

COUNTED = {"steps": 3, "batch_size": 8, "lr": 0.1}
TIMEOUT, PATIENT = {"timeout_s": 30.0}, {"timeout_s": 3000.0}


def server(
    name: str,
    params: dict[str, Any],
    down: tuple[str, ...] = ("arrays",),
    up: tuple[str, ...] = ("arrays",),
    **more: Any,
) -> Row:
    """Return the row of a server strategy whose clients all do the same."""
    return Row(name, {"participants": 4, **params}, {"participants": 99, **params}, down=down, up=up, **more)


def flowers(name: str, params: dict[str, Any] | None = None, **more: Any) -> Row:
    """Return the row of one of Flower's own strategies."""
    some = {"fraction_train": 0.5, "fraction_evaluate": 0.0, **(params or {})}
    full = {**some, "fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
    return Row(name, some, full, down=("arrays",), up=("arrays",), **more)


ROWS = [
    flowers("fedavg"),
    flowers("fedadagrad", alone=ADAGRAD),
    flowers("fedadam", alone=ADAM),
    flowers("fedyogi", alone=YOGI),
    flowers("fedmedian"),
    flowers("fedtrimmedavg", {"beta": 0.25}),
    flowers("krum", fewest=3),
    flowers("multikrum", {"num_nodes_to_select": 2}, fewest=3),
    flowers("bulyan", fewest=3),
    flowers("qfedavg", {"q": 0.0}, numbers=("num-examples", "train_loss", "start_loss")),
    Row("centralised", {"participants": 4}, {"participants": 99}, talks=False),
    Row("local_only", {}, {}, topology="complete", talks=False),
    server("fedavgm", {"momentum": 0.5}, alone=with_momentum),
    server("fedprox", {"mu": 0.7}, alone=proximal),
    Row(
        "fedprox",
        {
            "participants": 4,
            "mu": 0.0,
            "select": {"name": "curriculum", "rounds": 4, "order": "random", "b": 0.6},
        },
        {"participants": 99, "mu": 0.0},
        {"epochs": 1, "batch_size": 8, "lr": 0.1, "curriculum": {"score": "both"}},
        down=("arrays",),
        up=("arrays",),
    ),
    server("fednova", {}),
    server("finetune", {"steps": 2}),
    server("fedper", {}, at_zero="conformance_rows:halves_at_zero"),
    server("fedrep", {"head_steps": 2}, alone=head_then_body, at_zero="conformance_rows:halves_at_zero"),
    server("ditto", {"lam": 0.5}, local=COUNTED),
    server("feddyn", {"alpha": 0.5}, alone=dynamic),
    server(
        "scaffold",
        {},
        down=("arrays", "control"),
        up=("arrays", "control"),
        rests={"participants": 6, "warm_start": True},
    ),
    server("mifa", {}),
    server("fedvarp", {}),
    server(
        "mimelite",
        {"momentum": 0.6},
        local=COUNTED,
        alone=mimicking,
        down=("arrays", "momentum"),
        up=("arrays", "gradient"),
    ),
    Row(
        "fedpage",
        {"participants": 4, "p": 0.5},
        {"participants": 99, "p": 0.0},
        COUNTED,
        alone=carried_on,
        rests={"participants": 2, "p": 0.0},
    ),
    Row(
        "bvr_l_sgd",
        {"participants": 4, "inner": 2},
        {"participants": 99, "inner": 2},
        COUNTED,
        symmetric=False,  # who is followed is drawn by id
        rests={"participants": 6},
    ),
    Row(
        "fedasync",
        {"concurrency": 4},
        {"concurrency": 1, "mu": 0.7},
        alone=mixing,
        symmetric=False,  # who is asked is drawn by id, and who is early counts more
    ),
    Row(
        "fedbuff",
        {"concurrency": 4, "buffer": 2},
        {"concurrency": 1, "buffer": 1, "server_lr": 0.5},
        alone=buffering,
        symmetric=False,
    ),
    Row(
        "fedamd",
        {"participants": 4, "p": 0.5},
        {"participants": 99, "period": 2},
        COUNTED,
        "star",
        (0, 3, 0, 3),
        rests={"participants": 2},
    ),
    Row(
        "fedamd",
        {"participants": 4, "schedule": "opt-b", "caches_at": "clients", "halve_lr_at": [3]},
        {"participants": 99, "period": 2, "caches_at": "clients"},
        COUNTED,
        "star",
        (0, 3, 0, 3),
        rests={"participants": 2},
    ),
    Row(
        "dpsgd",
        {"timeout_s": 30.0},
        {"timeout_s": 30.0},
        topology={"name": "random_regular", "degree": 3},
    ),
    Row(
        "dpsgd_curriculum",
        {"rounds": 4, "b": 0.5, **TIMEOUT},
        {"rounds": 4, "b": 0.5, **TIMEOUT},
        {"epochs": 1, "batch_size": 8, "lr": 0.1, "curriculum": {}},
        topology={"name": "random_regular", "degree": 3},
    ),
    Row(
        "dpsgd_curriculum",
        {"rounds": 4, "order": "random", **TIMEOUT},
        {"rounds": 4, "order": "vanilla", **TIMEOUT},
        topology={"name": "random_regular", "degree": 3},
    ),
    Row("one_peer", TIMEOUT, PATIENT, topology="exponential"),
    Row("epidemic", {"receivers": 3, **TIMEOUT}, {"receivers": 5, **PATIENT}, topology="complete"),
    Row("push_sum", TIMEOUT, PATIENT, topology="one_peer_exponential"),
    Row("gradient_tracking", TIMEOUT, PATIENT, topology="ring", steps_per_round=(1, 1, 1, 1)),
    Row("choco", {"share": 0.2, **TIMEOUT}, PATIENT, topology="ring"),
    Row(
        "gossip",
        {"period_s": 4.0},
        {"period_s": 100.0},  # longer than a training of all data takes
        topology="complete",
        symmetric=False,
    ),
    Row(
        "hierarchical",
        {"edges": 2, "cloud_every": 2, **TIMEOUT},
        {"edges": 1, "cloud_every": 1, **PATIENT},
        topology={"name": "tree", "branching": 2},
    ),
    Row("adpsgd", TIMEOUT, TIMEOUT, topology={"name": "random_regular", "degree": 3}, symmetric=False),
    Row(
        "teleportation",
        {"participants": 4, **TIMEOUT},
        {"participants": 99, **TIMEOUT},
        topology="complete",
        symmetric=False,
    ),
    Row(
        "modest",
        {
            "sample_size": 4,
            "aggregators": 2,
            "success_fraction": 0.5,
            "aggregator_timeout_s": 20.0,
            "minimum_models": 1,
            "resend_s": 30.0,
        },
        {"sample_size": 99},
        topology="complete",
    ),
    Row(
        "modest_fedamd",
        {
            "sample_size": 4,
            "aggregators": 2,
            "success_fraction": 0.5,
            "aggregator_timeout_s": 20.0,
            "minimum_models": 1,
            "resend_s": 30.0,
        },
        {"sample_size": 99, "p": 0.0},
        COUNTED,
        "complete",
        alone=stale,
        also=("anchor",),
    ),
    Row(
        "modest_flower",
        {"sample_size": 4, "success_fraction": 0.5, "ping_timeout_s": 5.0},
        {"sample_size": 99},
    ),
]


def experiment(row: Row, **changes: Any) -> dict[str, Any]:
    """Return a small world with latencies, bandwidth, slow devices and churn; ``a__b=c`` sets ``a.b``."""
    base: dict[str, Any] = {
        "name": row.name,
        "seed": 5,
        "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 5}},
        "model": {"name": "mlp", "hidden": 8},
        "strategy": {"name": row.name, "local": row.local, **row.params},
        "topology": row.topology,
        "network": {
            "latency_ms": {"distribution": "uniform", "low": 5, "high": 80},
            "up_mbps": 1,
            "down_mbps": 4,
            "detect_s": 1,
        },
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.5}},
        "churn": {"name": "exponential", "online_s": 20, "offline_s": 5},
        "stop": {"rounds": 4},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
    }
    for path, value in changes.items():
        *blocks, key = path.split("__")
        inside = base
        for block in blocks:
            inside = inside.setdefault(block, {})
        inside[key] = value
    return base


def calm(row: Row, clients: int, local: dict[str, Any]) -> dict[str, Any]:
    """Return a world without churn in which everybody takes part in every round."""
    whole = {
        "name": row.name,
        "local": local,
        **{k: min(v, clients) if k in ("participants", "sample_size") else v for k, v in row.full.items()},
    }
    topology = "star" if row.topology == "star" else "complete"
    data = {"clients": clients}
    return experiment(row, strategy=whole, topology=topology, churn="always", data=data)


def flat(weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return a model's parameters as one vector."""
    return np.concatenate([array.reshape(-1) for array in weights.values()])


def copies(*, clients: int, seed: int) -> Dataset:
    """Some of the digits, the same ones for every client."""
    few = digits(seed=seed)
    x, y = few.x[:60], few.y[:60]
    groups = np.repeat(np.arange(clients), 60)
    x = torch.cat([x] * clients)
    return replace(few, name="copies", x=x, y=y.repeat(clients), groups=groups)


def rested(*, heterogeneity: float = 0.0, clients: int, seed: int) -> Dataset:
    """Least squares whose optimum is zero."""
    data = quadratic(dimension=6, samples=8, heterogeneity=heterogeneity, clients=clients, seed=seed)
    y = data.y - data.x @ data.optimum
    return replace(data, y=y, y_test=y, optimum=torch.zeros_like(data.optimum))


def at_zero(*, shape: tuple[int, ...]) -> nn.Module:
    """A linear function whose weights are zero at the start."""
    module = linear(shape=shape)
    nn.init.zeros_(module[1].weight)
    return module


class Halves(nn.Module):
    """A linear function of six numbers whose weights are in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(3, 1, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the layers make of their halves."""
        return (self.first(x[:, :3]) + self.last(x[:, 3:])).squeeze(-1)


def halves_at_zero() -> nn.Module:
    """A linear function of two layers whose weights are zero at the start."""
    module = Halves()
    for weight in module.parameters():
        nn.init.zeros_(weight)
    return module


def rolled(labels: np.ndarray, clients: int, *, shift: int) -> list[np.ndarray]:
    """A partition of interleaved shards of different sizes, dealt out from another client on."""
    cuts = [
        int(len(labels) * share) for share in np.cumsum(np.arange(1, clients) / (clients * (clients + 1) / 2))
    ]
    shards = np.split(np.arange(len(labels)), cuts)
    return [shards[(client + shift) % clients] for client in range(clients)]
