"""FedAMD: anchor sampling for federated learning with partial client participation.

F. Wu, S. Guo, Z. Qu, S. He, Z. Liu, J. Gao: Anchor Sampling for Federated Learning with Partial Client Participation.
ICML 2023, PMLR 202:37379-37416.

Each participant plays one of two roles. An *anchor* sends one large-batch gradient at the global model, which the
server caches. A *miner* takes K small-batch steps along the mean of all caches, corrected by its own data; only miners
move the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from fedsim import rng
from fedsim.errors import BadValue
from fedsim.flower.face import FlowerFace
from fedsim.learn.around import Transform
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import LocalUpdate, MeanGradient, State, rate, steps_of
from fedsim.learn.sampling import FreshBatches
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.around import Central, CentralClip
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.select import Selector
from fedsim.methods.server import Ask, Reply, ask_all, uniform_mean
from fedsim.parts import Count, Positive, Share
from fedsim.spec.experiment import Local
from strategies.fedamd import schedules
from strategies.fedamd.caches import Caches, Held, Spilled

ANCHOR, MINER = "train.anchor", "train.miner"
CACHE, LATEST, WHEN = "fedamd.cache", "fedamd.latest", "fedamd.when"
REFRESH = 50

Anchor = MeanGradient
log = logging.getLogger("fedsim")


class FedAMD(FlowerFace, Rounds):
    """Anchors refresh cached gradients, miners follow their mean (Wu et al., ICML 2023).

    A client that does not answer leaves its cache as it was. Without any cache to follow, everybody is an anchor.

    Args:
        participants: clients in a round (A); fewer if fewer are online.
        local: local steps (K), mini-batch size (b') and learning rate of the miners.
        schedule: with which probability a participant is an anchor: ``constant``, ``sequential``, ``decaying``, or
            the optimal constants ``opt-a``, ``opt-b``, ``opt-c``; sequential if ``period`` is given, else constant.
        p: the constant schedule's probability, by independent coins; 0.5 unless given.
        period: the sequential schedule's: in one round of ``period`` all participants are anchors.
        first: whether the sequential schedule starts with anchors or with miners.
        large_batch: batch size of the anchors (b); None for all their samples.
        server_lr: server learning rate.
        halve_lr_at: the rounds from which on the local learning rate is halved, once for each.
        caches: how they begin: ``warm``, by a pass before the first round, with real messages and real work, in which
            all clients that are online are anchors; ``zero``; or ``lazy``, where a client counts in the mean from
            its first gradient on. After a warm pass, that holds for the clients that missed it.
        caches_at: who keeps them: the ``server``, or the ``clients``, each its own, of which they send the changes;
            the server then has their sum alone, and rounding errors stay in it. Nothing may change what they send,
            but a compression with error feedback, whose errors stay in the sum only where a reply is lost.
        caches_on: whether the server's are in the memory of the ``device``, or on ``disk``.
        select: chooses the participants.
        timeout_s: how long the pass before the first round may take, in seconds; None waits for all.
        seed: of cohorts and roles.

    Raises:
        BadValue: for parameters that contradict each other.
    """

    weighted: ClassVar[bool] = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        schedule: schedules.Name | None = None,
        p: Share | None = None,
        period: Count | None = None,
        first: schedules.First = "anchors",
        large_batch: Count | None = None,
        server_lr: Positive = 1.0,
        halve_lr_at: list[Count] | None = None,
        caches: Literal["warm", "zero", "lazy"] = "warm",
        caches_at: Literal["server", "clients"] = "server",
        caches_on: Literal["device", "disk"] = "device",
        select: Selector | None = None,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        if caches_at == "clients" and caches_on == "disk":
            raise BadValue("caches_on", caches_on, "the server has no caches where caches_at is clients")
        anchor = Anchor(large_batch) if caches_at == "server" else KeepingAnchor(large_batch)
        self._anchor = anchor
        own: dict[str, Any] = {} if select is None else {"select": select}
        super().__init__(participants=participants, local=local, timeout_s=timeout_s, seed=seed, **own)
        self.schedule = schedules.choose(schedule, p, period, first)
        self.p, self.period, self.first = 0.5 if p is None else p, period, first
        self.server_lr, self.halve_lr_at = server_lr, halve_lr_at or []
        self.start_with, self.caches_at = caches, caches_at
        self.caches: Caches = Held() if caches_on == "device" else Spilled()
        self.heard: dict[int, int] = {}
        """The round of the last gradient of each client that has a cache, wherever that is."""
        self._sum: Deferred | None = None

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what anchors and miners do."""
        return {ANCHOR: self._anchor, MINER: Miner(self.local)}

    def check(self, clients: int) -> None:
        """Check the parameters against the number of clients, and warn of a model that cannot move."""
        super().check(clients)
        if all(self.share(round) == 1.0 for round in (1, 2)):
            given = f"p = {self.p:g}" if self.period is None else f"period = {self.period}"
            log.warning("FedAMD with %s: every participant is an anchor, so the model will never move", given)

    def check_around(self, transforms: Sequence[Transform | Central]) -> None:
        """Refuse what changes the differences that clients send, and is not made up for later."""
        for one in transforms if self.caches_at == "clients" else ():
            if isinstance(one, CentralClip) or (isinstance(one, Transform) and not one.remembers):
                rule = (
                    f"clients send by how much their caches change, and the {type(one).__name__} of strategy.around "
                    "changes that: the server's sum would drift away from the caches"
                )
                hint = "set caches_at: server, or, if no reply is ever lost, compress with error feedback"
                raise BadValue("caches_at", self.caches_at, rule, hint)

    def share(self, round: int) -> float:
        """Return the probability that a participant of a round is an anchor; rounds count from 1."""
        if self.period is not None:
            return schedules.sequential(round, self.period, self.first)
        if self.schedule == "decaying":
            return schedules.decaying(round)
        optimal = schedules.OPTIMAL.get(self.schedule)
        return self.p if optimal is None else optimal(self.clients, self.participants)

    def is_anchor(self, round: int, node: int) -> bool:
        """Return the role of a participant in a round; rounds count from 1."""
        return bool(rng.stream(self.seed, "role", node, round).random() < self.share(round))

    def anchor_mean(self) -> Deferred:
        """Return the mean of the cached gradients (ḡ)."""
        assert self._sum is not None
        return self._sum / (self.clients if self.start_with == "zero" else len(self.heard))

    def begin(self, model: Deferred) -> None:
        """Ask every client for an anchor gradient, if the caches are to be warm."""
        if self.start_with == "zero":
            self._sum = 0.0 * model
        elif self.start_with == "warm":
            self._refresh(0, self.exchange(self._anchors(0, model, self.online())))

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Draw the roles; miners also get the mean of the caches."""
        if self._sum is None:
            return self._anchors(round, model, cohort)
        anchors = [node for node in cohort if self.is_anchor(round, node)]
        miners = [node for node in cohort if node not in anchors]
        asks = self._anchors(round, model, anchors)
        if miners:
            mean, numbers = self.anchor_mean(), self._rate(round)
            asks += ask_all(miners, MINER, numbers, arrays=model, anchor_mean=mean)
        return asks

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Move the model by the mean of the miners' progress, then refresh the anchors' caches."""
        miners = [reply for reply in replies if reply.action == MINER]
        if miners:
            model = model - self.server_lr * uniform_mean(miners)
        self._refresh(round, replies)
        if round % REFRESH == 0 and self.caches:
            self._sum = self.caches.total()
        return model

    def metrics(self, round: int) -> Iterable[Metric]:
        """Count the roles, and the caches with their mean age in rounds."""
        anchors = sum(reply.action == ANCHOR for reply in self.came)
        yield Metric("anchors", anchors)
        yield Metric("miners", len(self.came) - anchors)
        yield Metric("cached", len(self.heard))
        if self.heard:
            yield Metric("cache_age", sum(round - last for last in self.heard.values()) / len(self.heard))

    def _anchors(self, round: int, model: Deferred, nodes: Iterable[int]) -> list[Ask]:
        if self.caches_at == "server":
            return ask_all(nodes, ANCHOR, arrays=model)
        told = {node: {"round": round, "heard": self.heard.get(node, -1)} for node in nodes}
        return [Ask(node, ANCHOR, {"arrays": model}, numbers) for node, numbers in told.items()]

    def _rate(self, round: int) -> dict[str, float]:
        """Return what the miners' learning rate is multiplied by in a round, if that ever changes."""
        passed = sum(round >= start for start in self.halve_lr_at)
        return {"lr-factor": 0.5**passed} if self.halve_lr_at else {}

    def _refresh(self, round: int, replies: Iterable[Reply]) -> None:
        """Replace the anchors' cached gradients, and keep the running sum in step."""
        new = {reply.node: reply.vectors["arrays"] for reply in replies if reply.action == ANCHOR}
        if not new:
            return
        terms = [] if self._sum is None else [(self._sum, 1.0)]
        for node, vector in new.items():
            old = self.caches.get(node)
            terms += [(vector, 1.0)] if old is None else [(vector, 1.0), (old, -1.0)]
        vectors, factors = zip(*terms, strict=True)
        self._sum = combine(vectors, factors)
        if self.caches_at == "server":
            self.caches.keep(new, self._sum)
        self.heard.update(dict.fromkeys(new, round))


class KeepingAnchor(MeanGradient):
    """An anchor that keeps its cache itself, and sends by how much the new gradient differs from it.

    A client cannot know whether its last difference has arrived. So it keeps the gradients before and after it, and
    the round, and the server says in which round it heard from the client last.

    Args:
        large_batch: how many samples, drawn without replacement; None for all.
    """

    keeps = (CACHE, LATEST, WHEN)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the round, and the one in which the server last heard of the client; -1 for never."""
        return {"round": 0.0, "heard": -1.0}

    def init(self, given: State) -> State:
        """Start a sum of gradients, and find out which cache the server knows."""
        known = torch.where(given[WHEN] == given["heard"], given[LATEST], given[CACHE])
        return {**super().init(given), "cache": known, "round": given["round"]}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add the gradients of a chunk."""
        return {
            **super().step(gradient, state, batch),
            "cache": state["cache"],
            "round": state["round"],
        }

    def final(self, state: State) -> State:
        """Send the difference; keep both gradients and the round."""
        result, cache = super().final(state), state["cache"]
        kept = {CACHE: cache, LATEST: result["arrays"], WHEN: torch.zeros_like(cache) + state["round"]}
        return {**result, "arrays": result["arrays"] - cache, **kept}


class Miner(LocalUpdate):
    """K steps along the anchors' mean, corrected by the miner's own data (a SARAH recursion).

    The first step follows ḡ itself and needs no data; step k adds the change of the miner's gradient, on one fresh
    mini-batch, from the iterate before last to the last one.

    Args:
        local: steps K, batch size b' and learning rate; nothing else has a place in the algorithm.
    """

    takes = ("arrays", "anchor-mean")
    models = ()
    gradients = 2

    def __init__(self, local: Local) -> None:
        self.local, self.steps = local, steps_of(local, "FedAMD")
        self.sampling = FreshBatches(local, self.steps - 1)
        self.metrics = ("train_loss",) if self.steps > 1 else ()

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, and what the server may multiply it by."""
        return {"lr": rate(self.local, client), "lr-factor": 1.0}

    def init(self, given: State) -> State:
        """Take the first step: y_1 = x - lr ḡ."""
        start, direction = given["arrays"], given["anchor-mean"]
        lr = given["lr"] * given["lr-factor"]
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
