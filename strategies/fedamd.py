"""FedAMD: anchor sampling for federated learning with partial client participation.

F. Wu, S. Guo, Z. Qu, S. He, Z. Liu, J. Gao: Anchor Sampling for Federated Learning with Partial Client Participation.
ICML 2023, PMLR 202:37379-37416.

Each participant plays one of two roles. An *anchor* sends one large-batch gradient at the global model, which the
server caches. A *miner* takes K small-batch steps along the mean of all caches, corrected by its own data; only miners
move the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim import rng
from fedsim.config import Local
from fedsim.errors import MISSING, BadValue
from fedsim.flower.arrays import layout_of, pack, unpack
from fedsim.flower.cohort import draw, online
from fedsim.learn.deferred import Deferred, combine, mean
from fedsim.learn.local import LocalUpdate, State, batch_width, rate, samples_used, shuffled_batches
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import Count, Positive, Share

ANCHOR, MINER = "train.anchor", "train.miner"
CHUNK = 256
REFRESH = 50


class FedAMD(Strategy):
    """Anchors refresh cached gradients, miners follow their mean (Wu et al., ICML 2023).

    Before the first round every client that is online sends an anchor gradient, as real messages and real work. A
    client whose gradient is not cached yet is left out of the mean until it has been an anchor.

    Args:
        participants: clients in a round (A); fewer if fewer are online.
        local: local steps (K), mini-batch size (b') and learning rate of the miners.
        p: probability that a participant is an anchor, by independent coins; 0.5 unless ``period`` is given.
        period: sequential schedule instead: in one round of ``period`` all participants are anchors.
        first: whether the sequential schedule starts with anchors or with miners.
        large_batch: batch size of the anchors (b); None for all their samples.
        server_lr: server learning rate.
        timeout_s: how long the pass before the first round may take, in seconds; None waits for all.
        seed: of cohorts and roles.
    """

    timing_depends_on_values = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        p: Share | None = None,
        period: Count | None = None,
        first: Literal["anchors", "miners"] = "anchors",
        large_batch: Count | None = None,
        server_lr: Positive = 1.0,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        if p is not None and period is not None:
            raise BadValue("period", period, "give p (constant schedule) or period (sequential), not both")
        self.participants, self.server_lr = participants, server_lr
        self.p, self.period, self.first = 0.5 if p is None else p, period, first
        self.timeout_s, self.seed = timeout_s, seed
        self.updates = {ANCHOR: Anchor(large_batch), MINER: Miner(local)}
        self.caches: dict[int, Deferred] = {}
        self._sum: Deferred | None = None

    def check(self, clients: int) -> None:
        """Check the parameters against the number of clients."""
        if self.participants > clients:
            raise BadValue("participants", self.participants, f"at most {clients}, the number of clients")

    def anchor_mean(self) -> Deferred:
        """Return the mean of the cached gradients (ḡ)."""
        assert self._sum is not None
        return self._sum / len(self.caches)

    def is_anchor(self, round: int, node: int) -> bool:
        """Return the role of a participant in a round; rounds count from 1."""
        if not self.caches:
            return True
        if self.period is not None:
            return (round - 1 if self.first == "anchors" else round) % self.period == 0
        return bool(rng.stream(self.seed, "role", node, round).random() < self.p)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the participants and their roles; miners also get the mean of the caches."""
        if server_round == 1:
            self._first_pass(arrays, config, grid)
        config["server-round"] = server_round
        self._model, self._shape = unpack(arrays), layout_of(arrays)
        cohort = draw(online(grid), self.participants, rng.stream(self.seed, "cohort", round=server_round))
        anchors = [node for node in cohort if self.is_anchor(server_round, node)]
        miners = [node for node in cohort if node not in anchors]
        to_anchors = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(to_anchors, node, ANCHOR) for node in anchors]
        if miners:
            direction = pack(self.anchor_mean(), *self._shape)
            to_miners = RecordDict({"arrays": arrays, "anchor-mean": direction, "config": config})
            messages += [Message(to_miners, node, MINER) for node in miners]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Move the model by the mean of the miners' progress, then refresh the anchors' caches."""
        heard = _heard(replies)
        anchors = [reply for reply in heard if reply.metadata.message_type == ANCHOR]
        progress = [unpack(_arrays(reply)) for reply in heard if reply.metadata.message_type == MINER]
        if progress:
            self._model = self._model - self.server_lr * mean(progress)
        self._refresh(anchors)
        if server_round % REFRESH == 0 and self.caches:
            self._sum = _sum(self.caches)
        counts = MetricRecord({"anchors": len(anchors), "miners": len(progress), "cached": len(self.caches)})
        return pack(self._model, *self._shape), counts

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked for."""
        return None

    def summary(self) -> None:
        """Say nothing; the experiment file says it all."""

    def _first_pass(self, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> None:
        config["server-round"] = 0
        content = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(content, node, ANCHOR) for node in online(grid)]
        self._refresh(_heard(grid.send_and_receive(messages, timeout=self.timeout_s)))

    def _refresh(self, anchors: Iterable[Message]) -> None:
        """Replace the anchors' cached gradients, and keep the running sum in step."""
        for reply in anchors:
            node, new = reply.metadata.src_node_id, unpack(_arrays(reply))
            old = self.caches.get(node)
            self.caches[node] = new
            if self._sum is not None:
                self._sum = (
                    self._sum + new if old is None else combine([self._sum, new, old], [1.0, 1.0, -1.0])
                )
        if self._sum is None and self.caches:
            self._sum = _sum(self.caches)


def _heard(replies: Iterable[Message]) -> list[Message]:
    """Return the replies that are not errors in the order of node ids, in which everything is summed."""
    return sorted((r for r in replies if r.has_content()), key=lambda r: r.metadata.src_node_id)


def _sum(caches: dict[int, Deferred]) -> Deferred:
    """Add up the caches in the order of node ids, exactly as a fresh start would."""
    return combine([caches[node] for node in sorted(caches)], [1.0] * len(caches))


def _arrays(reply: Message) -> ArrayRecord:
    record = reply.content["arrays"]
    assert isinstance(record, ArrayRecord)
    return record


class Anchor(LocalUpdate):
    """One large-batch gradient at the weights received: ∇f_i(x; B).

    Args:
        large_batch: how many samples, drawn without replacement; None for all.
    """

    metrics = ("train_loss",)

    def __init__(self, large_batch: int | None = None) -> None:
        self.large_batch = large_batch

    def work(self, samples: int) -> int:
        """Count one gradient for each sample of the batch."""
        return min(self.large_batch or samples, samples)

    def width(self, samples: int) -> int:
        """Cut the batch into chunks that fit into memory."""
        return min(self.work(samples), CHUNK)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the batch."""
        drawn = rng.permutation(samples)[: self.work(samples)]
        width = self.width(samples)
        rows = np.full(-(-len(drawn) // width) * width, -1, dtype=np.int64)
        rows[: len(drawn)] = drawn
        return rows.reshape(-1, width)

    def init(self, given: State) -> State:
        """Start a sum of gradients."""
        weights = given["arrays"]
        zero = torch.zeros((), dtype=weights.dtype, device=weights.device)
        return {"weights": weights, "sum": torch.zeros_like(weights), "loss": zero, "count": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add the gradients of a chunk."""
        chunk, loss = gradient(state["weights"], batch)
        count = batch.weight.sum()
        return {
            "weights": state["weights"],
            "sum": state["sum"] + count * chunk,
            "loss": state["loss"] + count * loss,
            "count": state["count"] + count,
        }

    def final(self, state: State) -> State:
        """Send the mean gradient."""
        return {"arrays": state["sum"] / state["count"], "train_loss": state["loss"] / state["count"]}


class Miner(LocalUpdate):
    """K steps along the anchors' mean, corrected by the miner's own data (a SARAH recursion).

    The first step follows ḡ itself and needs no data; step k adds the change of the miner's gradient, on one fresh
    mini-batch, from the iterate before last to the last one.

    Args:
        local: steps K, batch size b' and learning rate; nothing else has a place in the algorithm.
    """

    takes = ("arrays", "anchor-mean")

    def __init__(self, local: Local) -> None:
        if local.steps is None:
            raise BadValue(
                "local.steps", MISSING, "FedAMD counts local steps, not epochs", "give local.steps"
            )
        for key, value in {"momentum": local.momentum, "weight_decay": local.weight_decay}.items():
            if value:
                raise BadValue(f"local.{key}", value, "FedAMD has neither momentum nor weight decay")
        self.local = local
        self.steps = local.steps
        self.metrics = ("train_loss",) if self.steps > 1 else ()

    def work(self, samples: int) -> int:
        """Count two gradients for each sample of the K-1 batches."""
        return 2 * samples_used(samples, self.width(samples), None, self.steps - 1)

    def width(self, samples: int) -> int:
        """Return b', or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw one mini-batch for each step but the first."""
        return shuffled_batches(samples, self.width(samples), None, self.steps - 1, rng)

    def scalars(self, client: int) -> dict[str, float]:
        """Return the learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Take the first step: y_1 = x - lr ḡ."""
        start, lr, direction = given["arrays"], given["lr"], given["anchor-mean"]
        zero = torch.zeros_like(lr)
        return {
            "start": start,
            "before": start,
            "weights": start - lr * direction,
            "direction": direction,
            "lr": lr,
            "loss": zero,
            "steps": zero,
        }

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Take one more: g ← g + ∇f_i(y; B) - ∇f_i(y_before; B), y ← y - lr g."""
        new, loss = gradient(state["weights"], batch)
        old, _ = gradient(state["before"], batch)
        direction = state["direction"] + new - old
        return {
            **state,
            "before": state["weights"],
            "weights": state["weights"] - state["lr"] * direction,
            "direction": direction,
            "loss": state["loss"] + loss,
            "steps": state["steps"] + 1,
        }

    def final(self, state: State) -> State:
        """Send the progress x - y_K."""
        loss = state["loss"] / state["steps"].clamp(min=1.0)
        return {"arrays": state["start"] - state["weights"], "train_loss": loss}
