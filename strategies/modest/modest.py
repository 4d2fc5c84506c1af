"""MoDeST: decentralized learning with a small sample of nodes in each round, and no server.

The first version of: A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma, M. de Vos: Practical Federated
Learning without a Server (Plexus). EuroMLSys 2025. Preprint: arXiv 2302.13837, 2023.

Everybody finds a round's sample by hashing ids with the round's number. The sample trains; the first nodes of the next
sample average what it has trained and pass the average on to that next sample. A node works only when a model comes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import simpy

from fedsim.errors import BadValue, few
from fedsim.learn.deferred import mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Count, NotNegative, Positive, Share
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph
from fedsim.world.net.network import Message
from fedsim.world.node import Node
from strategies.modest.membership import Membership
from strategies.modest.registry import VIEWS, View, view_sizes
from strategies.modest.sampling import LiveSample, Probes, fastest_first, least_window, orders, quorum

PING_BYTES, ACK_BYTES, ENVELOPE_BYTES = 179, 172, 70
"""Sizes of the authors' datagrams, signatures included, and of what goes with a model and its view."""

ACTS = {
    "ping": "_ping",
    "pong": "_pong",
    "advert": "_advert",
    "ack": "_ack",
    "aggregated": "_aggregated",
    "trained": "_trained",
}
"""What a node does with each kind of message."""

Carried = tuple[Any, ...]
"""What goes from sample to sample: the model, and whatever else a strategy needs there."""

log = logging.getLogger("fedsim")


@dataclass(kw_only=True, eq=False)
class MoDeST(PeerStrategy):
    """Train a small sample of nodes that everybody finds alike, and average at some of the next sample (2023).

    Measured are ``view_mean``, ``view_min`` and ``view_max``: how many nodes a node counts as active by the round that
    it knows of, over the ``views_read`` nodes that are online, among all or, where there are more, 100 drawn anew.

    Args:
        local: the local training of a round.
        seed: names the streams of the shuffles and of the receivers of adverts.
        sample_size: s, the number of nodes that train in a round.
        aggregators: a, how many nodes of the next sample average what they have trained.
        success_fraction: sf, which share of the sample's models makes an average; above 0.
        ping_timeout_s: how long a node has to answer before the next one is asked, in seconds.
        window: for how many rounds a node that nobody has heard of is still a candidate; None is the least number that
            keeps nodes that are there, ln(100 n) / -ln(1 - s/n).
        aggregator_timeout_s: after how many seconds an aggregator makes do with fewer models; None never does.
        minimum_models: with how many at least, which should be fewer than are enough; with fewer, it drops them.
        resend_s: after how many seconds a node whose model nobody has acknowledged sends it again, and each time after
            twice as many; None never does, and nothing is acknowledged.
        heartbeat_s: seconds between two signs of life of an idle node; None gives none.
        aggregator_choice: ``hash`` takes the first of the next sample, ``bandwidth`` those of it with the most.
        entry_bytes: the size of a view in a message, for each node that it knows.
    """

    one_model = True

    local: Local
    seed: int = 0
    sample_size: Count = 10
    aggregators: Count = 1
    success_fraction: Share = 1.0
    ping_timeout_s: Positive = 5.0
    window: Count | None = None
    aggregator_timeout_s: Positive | None = None
    minimum_models: Count = 3
    resend_s: Positive | None = None
    heartbeat_s: Positive | None = None
    aggregator_choice: Literal["hash", "bandwidth"] = "hash"
    entry_bytes: NotNegative = 87.2

    def __post_init__(self) -> None:
        if self.aggregators > self.sample_size:
            rule = f"must be at most sample_size ({self.sample_size}): the aggregators are the first of the sample"
            raise BadValue("aggregators", self.aggregators, rule)
        if not self.success_fraction > 0:
            raise BadValue("success_fraction", self.success_fraction, "must be above 0 and at most 1")
        self.update = LocalSGD(self.local)
        self.fastest = self.aggregator_choice == "bandwidth"
        self._known: View | None = None

    def check(self, clients: int) -> None:
        """Refuse a sample that is larger than the network; warn of what makes other parameters useless."""
        if self.sample_size > clients:
            raise BadValue("sample_size", self.sample_size, f"must be at most {clients}, the number of peers")
        least = least_window(clients, self.sample_size)
        if self.window is not None and self.window < least:
            text = "window %d: nodes that are there will be forgotten; %d nodes in samples of %d need at least %d"
            log.warning(text, self.window, clients, self.sample_size, least)
        enough = self.quorum(self.sample_size)
        if self.aggregator_timeout_s is not None and self.minimum_models >= enough:
            text = "aggregator_timeout_s makes no average of fewer models: minimum_models %d, and %d make one anyway"
            log.warning(text, self.minimum_models, enough)

    def setup(self, graph: Graph) -> None:
        """Name the nodes, and prepare what all of them compute alike."""
        ids = [str(node) for node in range(len(graph))]
        self.horizon = self.window or least_window(len(ids), self.sample_size)
        self.order = lru_cache(maxsize=16)(orders(ids))
        self.members: dict[int, Member] = {}
        self._nodes, self._known = len(ids), None

    def measure(self, round: int) -> Mapping[str, float]:
        """Count the candidates for the next round that each of :data:`VIEWS` drawn nodes knows of, if it is online."""
        drawn = stream(self.seed, "modest views", round=round).permutation(len(self.members))[:VIEWS]
        online = [one for one in map(self.members.__getitem__, drawn) if one.peer.node.online]
        return view_sizes([one.view.count(one.round + 1 - self.horizon) for one in online])

    def run(self, node: Peer) -> Process:
        """One node's life: it reads messages, and acts on each."""
        member = self.members[node.id] = Member(self, node)
        member.begin()
        while True:
            message = yield node.node.receive()
            getattr(member, ACTS[message.kind])(message)

    def quorum(self, invited: int) -> int:
        """Return how many models make an average, of so many nodes that were asked to train."""
        return quorum(self.success_fraction, self.sample_size, invited)

    def first_view(self, founders: list[int]) -> View:
        """Return what everybody knows at the start, whose table all share."""
        if self._known is None:
            self._known = View(self._nodes, founders)
        return self._known

    def first(self, peer: Peer) -> Carried:
        """Return what the first sample begins with."""
        return (peer.initial_model,)

    def train(self, peer: Peer, carried: Carried, round: int) -> Process:
        """Do a node's part in a round, and return what it sends to the next round's aggregators."""
        model = yield from peer.train(self.update, carried[0], round)
        return (model,)

    def merge(self, round: int, box: Mapping[int, Carried]) -> Carried:
        """Return what becomes of the results of a round, by node in the order of ids."""
        return (mean([model for model, *_ in box.values()]),)

    def size(self, peer: Peer, carried: Carried) -> int:
        """Return the size of what is carried in a message, in bytes."""
        return peer.model_bytes


class Member(Membership):
    """A node and what it knows.

    Args:
        rules: the parameters that all nodes share.
        peer: the node.
    """

    rules: MoDeST

    def __init__(self, rules: MoDeST, peer: Peer) -> None:
        self.rules, self.peer, self.id = rules, peer, peer.id
        self.view = rules.first_view(peer.founders).copy()
        self.leaving = self.trained = self.averaged = False
        self.train_round = self.average_round = self.acknowledged = self.events = self.unreached = 0
        self.boxes = 0
        self.training: simpy.Process | None = None
        self.averaging: simpy.Process | None = None
        self.average = rules.first(peer)
        self.box: dict[int, Carried] = {}
        self.invited, self.receivers = rules.sample_size, list[int]()
        self.owed: set[int] = set()
        self.samples: dict[LiveSample, None] = {}
        self.probes = Probes(peer, rules.ping_timeout_s, self._call)

    @property
    def round(self) -> int:
        """The latest round that it knows of."""
        return max(self.train_round, self.average_round, self.view.latest)

    def begin(self) -> None:
        """Take up its life; the first sample starts from the initial model."""
        peer = self.peer
        peer.waiting_for = self.waiting_for
        peer.node.on_change += (self._changed,)
        peer.on_retire(self._retire)
        if self.rules.heartbeat_s is not None:
            peer.start(self._beat(self.rules.heartbeat_s))
        if peer.node.online:
            first = list(islice(self.candidates(1), self.rules.sample_size))
            if self.id in first:
                model, *more = self.rules.first(peer)
                peer.send([self.id], (model, self.view.copy(), len(first), *more), 0, 1, "aggregated")

    def waiting_for(self) -> str:
        """Say what has to come before it goes on, or nothing if it has no part in what is going on."""
        if self.box:
            enough, round = self.rules.quorum(self.invited), self.average_round - 1
            lacks = few(sorted({*islice(self.candidates(round), self.invited)} - {*self.box}))
            return f"{enough} models of round {round}; it has those of {sorted(self.box)}, not of {lacks}"
        if self.trained and self.train_round == self.round - 1:
            return f"the average of round {self.train_round} from {few(self.receivers)}"
        return ""

    def candidates(self, round: int) -> Iterator[int]:
        """Return those that may be in a round's sample, in its order, as they are known now."""
        view, least = self.view.copy(), round - self.rules.horizon
        return (node for node in self.rules.order(round) if node == self.id or view.is_candidate(node, least))

    def _sample(self, round: int, size: int, fastest: bool = False) -> Process:
        """Find the first nodes of a round's sample that answer; a node that was away begins again."""
        while True:
            yield self.peer.node.back()
            candidates = self.candidates(round)
            if fastest:
                candidates = fastest_first(candidates, self.rules.sample_size, self.peer.mbps)
            sample = LiveSample(self.peer.node.clock, candidates, size, self.probes.ask)
            self.samples[sample] = None
            try:
                found = yield sample
            finally:
                del self.samples[sample]
                sample.stop()
            if found is not None:
                return found

    def _call(self, node: int, number: int) -> None:
        self.peer.send([node], (number,), PING_BYTES, self.round, "ping")

    def _ping(self, message: Message) -> None:
        if message.src in self.view:
            self.view.touch(message.src, max(self.round, message.round))
        if not self.leaving:
            self.peer.send([message.src], message.payload, PING_BYTES, self.round, "pong")

    def _pong(self, message: Message) -> None:
        self.view.touch(message.src, max(self.round, message.round))
        self.probes.end(message.payload[0], True)

    def _aggregated(self, message: Message) -> None:
        """An average has come: train in its round, unless that has been done."""
        round, (model, view, invited, *more) = message.round, message.payload
        self._hear(message, view)
        if round > self.train_round:
            self.train_round, self.trained = round, False
            if self.training is not None:
                self.training.interrupt("a newer round")
                self.training = None
        if round == self.train_round and self.training is None and not self.trained:
            self.training = self.peer.start(self._train(round, (model, *more), invited))
        else:
            self._drop(message)

    def _train(self, round: int, given: Carried, invited: int) -> Process:
        made = yield from self.rules.train(self.peer, given, round)
        self.receivers = yield from self._sample(round + 1, self.rules.aggregators, self.rules.fastest)
        self.training, self.trained = None, True
        self._push("trained", self.receivers, round + 1, made, invited)
        if self.rules.resend_s is not None:
            self.peer.start(self._insist(self.rules.resend_s, round, made, invited))

    def _insist(self, wait_s: float, round: int, made: Carried, invited: int) -> Process:
        """Send a trained model again until it has become part of an average, or a newer round has come."""
        while True:
            yield from self.peer.sleep(wait_s)
            if self.train_round > round or self.acknowledged > round:
                return
            self.receivers = yield from self._sample(round + 1, self.rules.aggregators, self.rules.fastest)
            self._push("trained", self.receivers, round + 1, made, invited)
            wait_s *= 2

    def _ack(self, message: Message) -> None:
        self.acknowledged = max(self.acknowledged, message.round)

    def _trained(self, message: Message) -> None:
        """A trained model has come: average when there are enough."""
        round, (model, view, invited, *more) = message.round, message.payload
        self._hear(message, view)
        if round > self.average_round:
            self.average_round, self.averaged = round, False
            self.box, self.owed, self.invited = {}, set(), invited
        elif round < self.average_round or self.averaged:
            self._drop(message)
            self._owe(message)
            return
        if not self.box and (after_s := self.rules.aggregator_timeout_s) is not None:
            self.boxes += 1
            self.peer.after(after_s, self._time_up, after_s, self.boxes)
        self.box.setdefault(message.src, (model, *more))
        self.owed.add(message.src)
        self.invited = min(self.invited, invited)
        if len(self.box) >= self.rules.quorum(self.invited):
            self._average()

    def _time_up(self, after_s: float, box: int) -> None:
        """Make do with what is in a box, which is known by its number, lest its models are kept until then."""
        if box != self.boxes or not self.box or self.peer.node.crashed:
            return
        if not self.peer.node.online:
            self.peer.after(after_s, self._time_up, after_s, box)
        elif len(self.box) >= min(self.rules.minimum_models, self.rules.quorum(self.invited)):
            self._average()
        else:
            self.box = {}

    def _average(self) -> None:
        """Average what has come, in the order of ids, and pass it on."""
        box, self.box, self.averaged = self.box, {}, True
        round = self.average_round - 1
        self.average = self.rules.merge(round, {node: box[node] for node in sorted(box)})
        self.unreached = 1
        self.peer.conclude(round, self.average[0], len(box))
        self.averaging = self.peer.start(self._pass_on(self.average_round, self.average))

    def _pass_on(self, round: int, average: Carried) -> Process:
        found = yield from self._sample(round, self.rules.sample_size)
        if self.average_round > round:
            return
        self.unreached = self.rules.quorum(len(found))
        self.view.fold()
        self._push("aggregated", found, round, average, len(found))
        if self.id in found:
            self._reached()

    def _owe(self, message: Message) -> None:
        """Acknowledge a late model, or pass the average on again if one that comes once more tells of a standstill."""
        if message.round < self.average_round or self.unreached <= 0:
            self._acknowledge([message.src], message.round)
        elif message.src not in self.owed:
            self.owed.add(message.src)
        elif self.averaging is not None and not self.averaging.is_alive:
            self.averaging = self.peer.start(self._pass_on(message.round, self.average))

    def _acknowledge(self, nodes: Sequence[int], round: int) -> None:
        if self.rules.resend_s is not None:
            self.peer.send(nodes, (), ACK_BYTES, round, "ack")

    def _hear(self, message: Message, view: View) -> None:
        self.view.merge(view)
        self.view.touch(message.src, max(self.round, message.round))

    def _push(self, kind: str, to: Sequence[int], round: int, what: Carried, invited: int) -> None:
        """Send a model with the view of this moment; joins that have been announced count from now on."""
        view_bytes = int(self.view.known * self.rules.entry_bytes + 0.5)
        size = self.rules.size(self.peer, what) + ENVELOPE_BYTES + view_bytes
        shuffle = stream(self.rules.seed, f"modest {kind}", self.id, round).permutation(len(to))

        def sent(node: int, delivered: bool) -> None:
            if delivered:
                self.view.touch(node, self.round)
                if kind == "aggregated" and round == self.average_round:
                    self._reached()

        model, *more = what
        payload = (model, self.view.copy(), invited, *more)
        self.peer.send([to[index] for index in shuffle], payload, size, round, kind, sent)
        self.view.admit()

    def _reached(self) -> None:
        """Acknowledge the models of an average when enough nodes have it to go on."""
        self.unreached -= 1
        if self.unreached == 0:
            self._acknowledge(sorted(self.owed), self.average_round)

    def _drop(self, message: Message) -> None:
        self.peer.node.log.add("late", self.id, message.src, message.size_bytes, message.round)

    def _changed(self, node: Node) -> None:
        if node.online:
            self._announce(joined=True)
        for sample in self.samples:
            sample.stop()

    def _at_work(self) -> simpy.Process | None:
        return next((one for one in (self.training, self.averaging) if one and one.is_alive), None)
