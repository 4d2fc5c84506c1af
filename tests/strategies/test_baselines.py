"""The baselines on hand-made quadratics: numbers derived by hand, and what each is known for.

Client i has f_i(x) = h_i/2 (x - c_i)^2: one sample a = sqrt(h_i) with target a c_i, as often as it says.
"""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord
from server_lab import OPTIMUM, C, H, local, quadratics, trained, walk

from fedsim import api
from fedsim.errors import BadValue, ConfigError
from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.engines import Sequential, Stacked, TrainJob
from fedsim.rng import stream
from fedsim.spec.experiment import Local, load
from fedsim.world import world as worlds
from strategies.server.fedavgm import FedAvgM
from strategies.server.feddyn import GRADIENT, Dynamic, FedDyn
from strategies.server.fednova import FedNova
from strategies.server.fedprox import FedProx
from strategies.server.scaffold import OWN, SCAFFOLD, Controlled
from topologies.graphs import star

# FedAvgM


def test_fedavgm_adds_the_last_move():
    models, _ = walk(FedAvgM(participants=3, local=local(1), momentum=0.5, server_lr=2.0), quadratics(), 2)
    # gradients at 0: -1, 2, -8; their mean is -7/3; at 7/15: -8/15, 44/15, -92/15; their mean is -56/45
    first = 2.0 * 0.1 * 7 / 3
    assert models[1] == pytest.approx(first, abs=1e-12)
    assert first == pytest.approx(7 / 15)
    velocity = 0.5 * 0.1 * 7 / 3 + 0.1 * 56 / 45
    assert models[2] == pytest.approx(first + 2.0 * velocity, abs=1e-12)


def test_fedavgm_counts_clients_by_their_samples():
    models, _ = walk(FedAvgM(participants=3, local=local(1)), quadratics(copies=(1, 2, 5)), 1)
    assert models[1] == pytest.approx(0.1 * (1 * 1 - 2 * 2 + 5 * 8) / 8, abs=1e-12)


def test_without_momentum_fedavgm_is_averaging():
    models, _ = walk(FedAvgM(participants=3, local=local(3), momentum=0.0), quadratics(), 1)
    wanted = sum(trained(h, c, 0.0, 3) for h, c in zip(H, C)) / 3
    assert models[1] == pytest.approx(wanted, abs=1e-12)


# FedProx


def test_fedprox_is_held_near_the_weights_received():
    models, _ = walk(FedProx(participants=3, local=local(2), mu=3.0), quadratics(start=1.0), 2)
    x = 1.0
    for found in models[1:]:
        x = sum(trained(h, c, x, pull=3.0) for h, c in zip(H, C)) / 3
        assert found == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("engine", [Sequential, Stacked])
def test_the_proximal_term_of_fedprox_is_not_zero(engine):
    """Held against the live weights, the term would vanish and μ would change nothing."""
    lab = quadratics(start=1.0, engine=engine)
    ends = []
    for mu in (0.0, 3.0):
        update = FedProx(participants=1, local=local(2), mu=mu).updates["train"]
        job = TrainJob(update, 2, update.batches(1, stream(0, "x")), {"arrays": lab.engine.task.initial})
        ends.append(float(lab.engine.train([job])[0]["arrays"]))
    # one step of lr h (c - x) = 0.4 leads to 1.4; the term then pulls with 3 x 0.4 x lr
    assert ends[0] - ends[1] == pytest.approx(3.0 * 0.4 * 0.1, abs=1e-12)


# SCAFFOLD


def test_scaffold_option_two_by_hand():
    """h = 1, 2 and c = 1, -1: both clients, one step; the controls are then the gradients at the start."""
    lab = quadratics(H[:2], C[:2], (1, 1))
    models, clients = walk(SCAFFOLD(participants=2, local=local(1)), lab, 2)
    # gradients at 0: -1 and 2; x1 = -0.05; controls -1, 2 and 1/2
    assert models[1] == pytest.approx(-0.05, abs=1e-12)
    kept = [float(clients.kept.of(i, Controlled(local(1), 2))[OWN].value()) for i in (0, 1)]
    # the second round keeps the gradients at -0.05: -1.05 and 1.9, whatever the correction was
    assert kept == pytest.approx([-1.05, 1.9], abs=1e-12)
    # the corrections cancel in the mean: x2 = x1 - 0.1 (-1.05 + 1.9) / 2
    assert models[2] == pytest.approx(-0.05 - 0.1 * 0.425, abs=1e-12)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_removes_the_drift_that_averaging_has(option):
    strategy = SCAFFOLD(participants=3, local=local(5, 0.05), option=option)
    models, _ = walk(strategy, quadratics(), 60)
    drifting, _ = walk(FedAvgM(participants=3, local=local(5, 0.05), momentum=0.0), quadratics(), 60)
    assert models[-1] == pytest.approx(OPTIMUM, abs=1e-6)
    assert abs(drifting[-1] - OPTIMUM) > 0.01


def test_scaffold_renews_the_mean_by_the_share_that_took_part():
    script = [{0}, {1}, {0, 1, 2}]
    models, _ = walk(SCAFFOLD(participants=3, local=local(1)), quadratics(), 3, script)
    x1 = 0.0 + 0.1 * 1.0  # client 0: gradient -1
    c = -1.0 / 3  # its control by the number of all clients
    x2 = x1 - 0.1 * (2 * (x1 + 1) + c)
    assert models[1:3] == pytest.approx([x1, x2], abs=1e-12)
    c += 2 * (x1 + 1) / 3  # option 2: the mean gradient of its one step
    own = [-1.0, 2 * (x1 + 1), 0.0]
    steps = [h * (x2 - a) - mine + c for h, a, mine in zip(H, C, own)]
    assert models[3] == pytest.approx(x2 - 0.1 * sum(steps) / 3, abs=1e-12)


def test_a_client_that_fails_in_mid_round_keeps_its_control():
    script = [{0, 1, 2}, {0, 1, 2}, {0, 1, 2}]
    strategy = SCAFFOLD(participants=3, local=local(1))
    _, clients = walk(strategy, quadratics(), 2, script, crash=(1, 2))
    kept = clients.kept.of(2, strategy.updates["train"])[OWN]
    assert float(kept.value()) == pytest.approx(-8.0, abs=1e-12)  # as after the first round


def test_a_warm_start_makes_the_first_round_exact():
    """With every client's gradient known, one step of each is a step along the gradient of all."""
    lab = quadratics(start=3.0)
    strategy = SCAFFOLD(participants=1, local=local(1), warm_start=True)
    models, _ = walk(strategy, lab, 1)
    wanted = 3.0 - 0.1 * sum(h * (3.0 - c) for h, c in zip(H, C)) / 3
    assert models[1] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("samples", [1, 5, 16])
def test_option_one_takes_one_more_pass(samples):
    one, two = (Controlled(Local(steps=3, batch_size=4, lr=0.1), option) for option in (1, 2))
    rows = one.batches(samples, stream(0, "x"))
    first = rows[: int(one.scalars(0, samples)["whole"])]
    assert sorted(first[first >= 0].tolist()) == list(range(samples))
    assert len(rows) - len(first) == 3 == len(two.batches(samples, stream(0, "x")))
    assert int((rows >= 0).sum()) == one.work(samples) == two.work(samples) + samples


# FedNova


def test_fednova_undoes_what_unequal_steps_do():
    """Epochs of one sample: client i takes as many steps as it has samples."""
    lab = quadratics(copies=(1, 2, 5))
    given = Local(epochs=1, batch_size=1, lr=0.1)
    models, _ = walk(FedNova(participants=3, local=given), lab, 1)
    steps, shares = (1, 2, 5), (1 / 8, 2 / 8, 5 / 8)
    ends = [trained(h, c, 0.0, n) for h, c, n in zip(H, C, steps)]
    tau = sum(p * n for p, n in zip(shares, steps))
    assert tau == 3.75
    wanted = tau * sum(p * end / n for p, n, end in zip(shares, steps, ends))
    assert models[1] == pytest.approx(wanted, abs=1e-12)


def test_with_equal_steps_fednova_is_averaging():
    models, _ = walk(FedNova(participants=3, local=local(4)), quadratics(copies=(2, 2, 2)), 1)
    assert models[1] == pytest.approx(sum(trained(h, c, 0.0, 4) for h, c in zip(H, C)) / 3, abs=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_norm_of_fednova_is_the_sum_of_its_weights(steps, rho):
    strategy = FedNova(participants=1, local=Local(steps=steps, momentum=rho))
    wanted = sum(sum(rho**k for k in range(steps - j)) for j in range(steps))
    assert strategy.norm(10) == pytest.approx(wanted, rel=1e-12)


# FedDyn


def test_feddyn_by_hand():
    """One step: y_i = x - lr g_i; h = α mean (x - y_i) = α lr ḡ, so x moves by 2 lr ḡ in the first round."""
    models, clients = walk(FedDyn(participants=3, local=local(1), alpha=0.5), quadratics(), 1)
    assert models[1] == pytest.approx(2 * 0.1 * 7 / 3, abs=1e-12)
    kept = [float(clients.kept.of(i, Dynamic(local(1), 0.5))[GRADIENT].value()) for i in range(3)]
    assert kept == pytest.approx([-0.5 * 0.1 * g for g in (1, -2, 8)], abs=1e-12)


@pytest.mark.slow
def test_feddyn_reaches_the_optimum_where_averaging_does_not():
    models, _ = walk(FedDyn(participants=3, local=local(20, 0.1), alpha=1.0), quadratics(), 150)
    assert models[-1] == pytest.approx(OPTIMUM, abs=1e-6)


def test_feddyn_counts_all_clients_in_its_memory():
    models, _ = walk(FedDyn(participants=3, local=local(1), alpha=0.5), quadratics(), 1, [{2}])
    # y = 0.8; h = α/3 (0 - 0.8), and x = y - h/α
    assert models[1] == pytest.approx(0.8 + 0.8 / 3, abs=1e-12)


# all of them

ALL = [
    FedAvgM(participants=3, local=local()),
    FedProx(participants=3, local=local(), mu=0.1),
    SCAFFOLD(participants=3, local=local()),
    SCAFFOLD(participants=3, local=local(), option=1),
    FedNova(participants=3, local=local()),
    FedDyn(participants=3, local=local()),
]


@pytest.mark.parametrize("strategy", ALL, ids=lambda one: type(one).__name__.lower())
def test_the_optimum_that_all_share_is_a_fixed_point(strategy):
    models, _ = walk(strategy, quadratics(c=(2.0, 2.0, 2.0), start=2.0), 3)
    assert models == pytest.approx([2.0] * 4, abs=1e-12)


def test_a_round_that_nobody_answers_leaves_the_model_alone():
    strategy = FedDyn(participants=3, local=local())
    strategy.check(3)
    learner = quadratics(start=1.5)
    file = {"data": {"clients": 3}, "strategy": "fedavg", "stop": {"rounds": 1}}
    grid = SimGrid(worlds.build(load(file), star(4), True), BuiltinClients(learner, strategy.updates))
    arrays = pack(learner.initial, learner.engine.task.layout, "float64")
    with compat.session(0, grid.server.id, grid.sleep):
        strategy.configure_train(1, arrays, ConfigRecord(), grid)
        new, facts = strategy.aggregate_train(1, [])
    assert float(unpack(new).value()) == 1.5
    assert facts == {"replies": 0}


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"name": "fedavgm", "momentum": 1.0}, "strategy.momentum: 1.0: must be less than 1"),
        ({"name": "fedprox"}, "strategy.mu: is required"),
        ({"name": "fedprox", "mu": -1.0}, "strategy.mu: -1.0: must be at least 0"),
        ({"name": "scaffold", "option": 3}, "strategy.option: 3: must be 1 or 2"),
        ({"name": "scaffold", "local": {"momentum": 0.5}}, "strategy.local.momentum: 0.5: SCAFFOLD has no"),
        ({"name": "feddyn", "alpha": 0.0}, "strategy.alpha: 0.0: must be greater than 0"),
        ({"name": "fednova", "local": {"weight_decay": 0.5}}, "strategy.local.weight_decay: 0.5: FedNova"),
        ({"name": "fednova", "local": {"lr": [0.1] * 8}}, "strategy.local.lr: [0.1, 0.1, 0.1, "),
        (
            {"name": "fednova", "participants": 9},
            "strategy.participants: 9: at most 8, the number of clients",
        ),
        (
            {"name": "scaffold", "warmstart": True},
            "strategy.warmstart: unknown key; did you mean warm_start?",
        ),
    ],
)
def test_bad_parameters_of_baselines(params, line):
    with pytest.raises(ConfigError) as caught:
        api.check({"data": {"clients": 8}, "strategy": {"participants": 4, **params}, "stop": {"rounds": 1}})
    assert str(caught.value).startswith(line)


def test_local_momentum_of_feddyn_is_refused_in_code_too():
    with pytest.raises(BadValue, match="no local momentum"):
        FedDyn(participants=1, local=local(momentum=0.5))
