"""Methods that divide by the clients' learning rate, where it changes from round to round."""

from __future__ import annotations

import pytest
import torch

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.methods.server import Reply
from fedsim.spec.experiment import Local
from strategies.server.fedpage import FedPAGE


def experiment(strategy, **local):
    return {
        "data": {"name": "tests.learn.odd_models:points", "clients": 3},
        "model": "softmax",
        "strategy": {"name": strategy, "participants": 2, "local": {"steps": 2, "lr": 0.1, **local}},
        "stop": {"rounds": 3},
        "compute": {"device": "cpu"},
        "record": {"report": False},
    }


@pytest.mark.parametrize("strategy", ["scaffold", "fedpage"])
def test_the_last_round_of_a_cosine_has_a_rate_that_can_be_divided_by(strategy, tmp_path):
    schedule = {"name": "cosine", "rounds": 3}
    result = fedsim.run(experiment(strategy, schedule=schedule), out=tmp_path)
    assert result.summary["rounds"] == 3
    with pytest.raises(ConfigError, match=r"schedule\.end: 0"):
        fedsim.check(experiment(strategy, schedule={**schedule, "end": 0}))


def test_the_step_that_fedpage_works_out_follows_the_rate_of_the_round():
    paced = Local.model_validate(
        {"steps": 4, "lr": 0.5, "schedule": {"name": "list", "factors": [1.0, 0.25]}}
    )
    model, gradient = (Deferred.known(torch.tensor([value])) for value in (10.0, 1.0))
    replies = [Reply(0, "train.full", {"arrays": gradient}, {}, 1)]
    # K lr = 2 in the first round, and a quarter of that in the second; a step that is given stays
    found = [FedPAGE(participants=1, local=paced).merge(r, model, replies).value().item() for r in (1, 2)]
    assert found == [8.0, 9.5]
    given = FedPAGE(participants=1, local=paced, server_lr=3.0)
    assert [given.merge(r, model, replies).value().item() for r in (1, 2)] == [7.0, 7.0]
