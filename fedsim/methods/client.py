"""A client as its method sees it when it is asked which model the client uses itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedsim.learn.deferred import Deferred, Inputs


class Tune(Protocol):
    """Trains a model [P] on a client's own data, for the client alone."""

    def __call__(self, model: Deferred, steps: int) -> Deferred:
        """Return the model [P] after so many local steps."""


@dataclass(frozen=True)
class Client:
    """What a client has.

    Args:
        id: the client.
        model: the server's model [P], with what of it is the client's own.
        tune: trains a model further on the client's data.
        kept: what the client keeps from visit to visit, by name [P]; what is not there it has not kept yet.
    """

    id: int
    model: Deferred
    tune: Tune
    kept: Mapping[str, Deferred] = field(default_factory=dict)


def own(kept: Deferred, model: Deferred) -> Deferred:
    """Return what a client keeps as a model of its own [P]; before its first visit, when that is zeros, another one.

    Args:
        kept: the model that it keeps, without numbers behind its weights [P].
        model: what stands in for it [P].

    >>> import torch
    >>> zeros, mine, theirs = (Deferred.known(torch.tensor([n, n])) for n in (0.0, 1.0, 2.0))
    >>> own(mine, theirs).value(), own(zeros, theirs).value()
    (tensor([1., 1.]), tensor([2., 2.]))
    """
    if kept.is_phantom or model.is_phantom:
        return Deferred.phantom()
    return Deferred(_Own(), {"kept": kept, "model": model})


class _Own:
    """See :func:`own`."""

    batch = None

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Any]:
        return [given["kept"] if bool(given["kept"].any()) else given["model"] for given in inputs]
