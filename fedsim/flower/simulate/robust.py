"""What Flower's robust strategies need of a round: below that they aggregate nothing, or protect from nobody."""

from __future__ import annotations

import logging
import math
from typing import Any

from flwr.serverapp.strategy import Bulyan, FedTrimmedAvg, MultiKrum, Strategy

from fedsim.errors import BadValue

log = logging.getLogger("fedsim")

FACTORS: dict[type[Strategy], int] = {Bulyan: 4, MultiKrum: 2}
"""Replies that each attacker asks for besides three: El Mhamdi et al., ICML 2018; Blanchard et al., NIPS 2017."""


def needed(strategy: Any) -> int:
    """Return how many replies of a round a strategy needs.

    >>> needed(Bulyan(num_malicious_nodes=1)), needed(MultiKrum(num_malicious_nodes=1)), needed(FedTrimmedAvg())
    (7, 5, 1)
    """
    factor = next((factor for kind, factor in FACTORS.items() if isinstance(strategy, kind)), None)
    return 1 if factor is None else factor * strategy.num_malicious_nodes + 3


def check_robust(strategy: Any, asked: int, quorum: float = 1.0) -> None:
    """Check a robust strategy against the number of clients in a round; all others pass.

    Args:
        strategy: any.
        asked: how many clients are asked in a round where all are online.
        quorum: the share of them whose replies end the wait.

    Raises:
        BadValue: if no round can have what the strategy needs.
    """
    replies = math.ceil(quorum * asked - 1e-9)
    if isinstance(strategy, tuple(FACTORS)):
        _check_attackers(strategy, replies)
    if isinstance(strategy, MultiKrum) and not 1 <= strategy.num_nodes_to_select <= replies:
        rule = f"must be at least 1 and at most {replies}, the replies of a round"
        raise BadValue("num_nodes_to_select", strategy.num_nodes_to_select, rule)
    if isinstance(strategy, FedTrimmedAvg):
        _check_trim(strategy.beta, replies)


def _check_attackers(strategy: Any, replies: int) -> None:
    attackers, name = strategy.num_malicious_nodes, type(strategy).__name__
    if attackers < 0:
        raise BadValue("num_malicious_nodes", attackers, "must be at least 0")
    if replies < needed(strategy):
        factor = next(factor for kind, factor in FACTORS.items() if isinstance(strategy, kind))
        rule = f"{name} needs at least {factor} x {attackers} + 3 = {needed(strategy)} replies in a round"
        most = (replies - 3) // factor
        hint = f"at most {most}, or ask more clients" if most >= 0 else "ask more clients"
        raise BadValue("num_malicious_nodes", attackers, f"{rule}, and there are {replies}", hint)


def _check_trim(beta: float, replies: int) -> None:
    cut = int(beta * replies)
    if 2 * cut >= replies:
        raise BadValue("beta", beta, f"cuts off all of the {replies} replies of a round")
    if beta and not cut:
        text = "strategy.beta = %g cuts nothing off %d replies: this is the plain mean of the models"
        log.warning(text, beta, replies)
