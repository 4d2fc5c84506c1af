"""What becomes of the buffers that training changes, such as running means: they are the last part of a vector [P].

A local update computes with the weights [W] alone. Before it the vectors received are cut, and after it those sent get
buffers again: those of the client where they are averaged, and those received where they are the client's own affair or
the server's. With FedBN (Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization. ICLR 2021) scale and shift of batch normalisation are the client's own, too, and so is whatever part of
a model a strategy leaves with the clients: a local update begins with the client's, and where they stand in what is
sent there is what was received.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.learn.deferred import Deferred, Inputs, mean
from fedsim.learn.engines.base import BUFFERS
from fedsim.learn.local import LocalUpdate, State
from fedsim.learn.task import Task


def kept(task: Task) -> tuple[str, ...]:
    """Return what a client keeps beside what its update does."""
    return (BUFFERS,) if task.mine or (task.buffers and _stay(task)) else ()


def cut(task: Task, given: Inputs) -> tuple[Inputs, Tensor | None]:
    """Return vectors without their buffers [W], and the buffers that a job begins with [P - W].

    Args:
        task: says whose they are.
        given: vectors [P] by name, with ``"arrays"`` and what the client keeps.
    """
    if not _has_own(task):
        return given, None
    own = given.get(BUFFERS)
    short = {name: vector[: task.trained] for name, vector in given.items() if name != BUFFERS}
    if own is not None and bool(own[0] != 0):
        end, received = 1 + task.size - task.trained, given["arrays"]
        if task.mine:
            short["arrays"] = short["arrays"].index_copy(0, task.own, own[end:])
        return short, own[1:end] if _stay(task) else received[task.trained :]
    if (
        task.kept and own is not None
    ):  # a server's mean of the first weights differs from them in its last digits
        short["arrays"] = short["arrays"].index_copy(0, task.own, task.initial[task.own])
    return short, given["arrays"][task.trained :] if "arrays" in given else None


def whole(task: Task, update: LocalUpdate, result: State, given: Inputs) -> State:
    """Return what a client sends and keeps as vectors [P], from weights [W] and its buffers at the end.

    The vector ``"arrays"`` carries averaged buffers even where it holds a difference or a gradient: a server reads them
    there. Everywhere else a difference has none.
    """
    if not _has_own(task):
        return result
    start, received = given["arrays"][: task.trained], given["arrays"][task.trained :]
    after = result[BUFFERS] if task.buffers else received
    averaged, none = task.held == "average", torch.zeros_like(after)
    made: State = {}
    for name, value in result.items():
        if name in (*update.sends, *update.keeps):
            is_model = name in update.models or (averaged and name == "arrays")
            tail = (after if averaged else received) if is_model else none
            head = _without_own(task, value, start if is_model else torch.zeros_like(start))
            made[name] = torch.cat([head, tail])
        elif name != BUFFERS:
            made[name] = value
    if kept(task):
        own = result["arrays"][task.own] if task.mine else after[:0]
        made[BUFFERS] = torch.cat([start.new_ones(1), after, own])  # zeros say that there has been no visit
    return made


def _has_own(task: Task) -> bool:
    """Tell whether there is anything that is not a plain weight."""
    return bool(task.buffers or task.mine)


def _stay(task: Task) -> bool:
    """Tell whether buffers are the clients' own."""
    return task.held in ("local", "fedbn")


def _without_own(task: Task, vector: Tensor, other: Tensor) -> Tensor:
    """Return a vector [W] with another one's numbers where a client's own weights stand."""
    return vector.index_copy(0, task.own, other[task.own]) if task.mine else vector


def merged(task: Task, model: Deferred, sent: Sequence[Deferred], weights: Sequence[float]) -> Deferred:
    """Return a server's model with the average of the clients' buffers, whatever its method has done to the weights.

    Args:
        task: says whose they are.
        model: what the method has made [P].
        sent: the vectors that clients have sent [P].
        weights: how each of them counts.
    """
    if not (task.buffers and task.held == "average" and sent):
        return model
    return Deferred(_Behind(task), {"model": model, "mean": mean(sent, weights)})


def judged(task: Task, model: Deferred, own: Iterable[Mapping[str, Deferred]]) -> Deferred:
    """Return a model with the mean of what clients keep for themselves: for its evaluation alone.

    Args:
        task: says whose the buffers are.
        model: of a server or a peer [P].
        own: what each client keeps, by name.
    """
    if not kept(task) or model.is_phantom:
        return model
    held = [vectors[BUFFERS] for vectors in own if BUFFERS in vectors]
    return Deferred(
        _Behind(task, flagged=True), {"model": model, **{str(i): one for i, one in enumerate(held)}}
    )


class _Behind:
    """Put other buffers behind the weights of a model: the mean of those given, of which some may not be.

    Weights of the clients' own come into their places likewise; where there are none yet, those of the beginning, if a
    strategy leaves them with the clients.
    """

    batch = None
    shared = False
    """Whether a model's buffers stay behind it, as only some weights are the clients' own."""
    own: Tensor | None = None
    first: Tensor | None = None

    def __init__(self, task: Task, flagged: bool = False) -> None:
        self.trained, self.count, self.flagged = task.trained, task.size - task.trained, flagged
        if flagged and task.mine:
            self.own = task.own
        if flagged and task.kept:
            self.first = task.initial[task.own]
        if flagged and not _stay(task):
            self.shared = True

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Tensor]:
        return [call.one(given) for call, given in zip(calls, inputs, strict=True)]

    def one(self, given: Inputs) -> Tensor:
        model: Tensor = given["model"]
        own = [vector for name, vector in given.items() if name != "model"]
        seen = [vector for vector in own if not self.flagged or bool(vector[0] != 0)]
        if not seen:
            return (
                model if self.own is None or self.first is None else model.index_copy(0, self.own, self.first)
            )
        first = 1 if self.flagged else self.trained
        means = torch.stack([vector[first:] for vector in seen]).mean(0)
        head = model[: self.trained]
        if self.own is not None:
            head = head.index_copy(0, self.own, means[self.count :])
        return torch.cat([head, model[self.trained :] if self.shared else means[: self.count]])
