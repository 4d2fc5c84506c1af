"""What Flower's strategies, and those built on them, can say of themselves besides."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.methods.traits import Read

EXAMPLES = "num-examples"


@dataclass(frozen=True, kw_only=True)
class Settings(Read):
    """The usual parameters of Flower's strategies, by their names there.

    Args:
        fraction_train: the share of the clients that train in a round; None if there is no such thing.
        fraction_evaluate: the share that evaluates; None if there is no such thing.
        min_train_nodes: how many train at least.
        min_evaluate_nodes: how many evaluate at least.
        min_available_nodes: how many have to be online.
        weighted_by_key: the number by which replies are weighted.
        arrayrecord_key: what the weights are called in a message; None if it does not say.
        configrecord_key: what the configuration is called.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> Settings.of(FedAvg(fraction_train=0.5)).fraction_train, Settings.of(object()).fraction_train
    (0.5, None)
    """

    fraction_train: float | None = None
    fraction_evaluate: float | None = None
    min_train_nodes: int = 1
    min_evaluate_nodes: int = 1
    min_available_nodes: int = 1
    weighted_by_key: str = EXAMPLES
    arrayrecord_key: str | None = None
    configrecord_key: str | None = None

    def asked(self, clients: int) -> int:
        """Return how many of so many clients train in a round, where all of them are online."""
        return _some(clients, self.fraction_train, self.min_train_nodes)

    def judged(self, clients: int) -> int:
        """Return how many of so many clients evaluate after a round, where all of them are online."""
        return _some(clients, self.fraction_evaluate, self.min_evaluate_nodes)


def _some(clients: int, share: float | None, least: int) -> int:
    return clients if share is None else min(clients, max(int(clients * share), least))
