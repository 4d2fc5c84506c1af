"""CHOCO-SGD: decentralized SGD in which only compressed differences travel.

A. Koloskova, S. U. Stich, M. Jaggi: Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
Communication. ICML 2019, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.learn.codec import Codec, Quantised, Sparse
from fedsim.learn.deferred import Deferred, Inputs, combine
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph
from topologies.mixing import facts, neighbour_weights

PositiveShare = Annotated[float, Field(gt=0, le=1)]

RECENT = 32
"""Of how many rounds a node remembers whose differences it has added."""


@dataclass(frozen=True)
class Compress:
    """What is left of a vector [P] after it was written and read, as a call.

    Only its W weights are compressed. Running statistics, which stand behind them, are sent as they are: they are few,
    and their size says nothing of how much they matter beside weights.
    """

    codec: Codec
    weights: int
    batch: None = None

    def run(self, calls: Sequence[Compress], inputs: Sequence[Inputs]) -> Sequence[Tensor]:
        """Compress the vectors."""
        return [self.one(given["of"]) for given in inputs]

    def one(self, vector: Tensor) -> Tensor:
        """Compress one vector."""
        head = vector[: self.weights]
        return torch.cat([self.codec.decode(self.codec.encode(head), len(head)), vector[self.weights :]])


class Choco(PeerStrategy):
    """Train, send a compressed difference, move towards what the neighbours are known to hold (Koloskova et al., 2019).

    Each end of a link keeps a copy (x̂ in the paper) of what the other one knows of it. They start at the model that
    everybody starts from, and both add the difference that was sent. The network tells a sender that a message was
    lost, and the sender takes the difference back: so the copies at both ends stay equal.

    Args:
        local: the local training of a round.
        compression: top sends the largest numbers and where they stand; quantised sends all of them, rounded to whole
            multiples of the largest one's fraction. Buffers that are averaged travel whole.
        share: the share of the numbers that top sends, above 0.
        bits: the size of a number that quantised sends.
        pace: how far to move towards the neighbours' copies (the paper's γ), above 0 and at most 1, without unit; the
            stronger the compression, the smaller it must be.
        timeout_s: how long to wait for the neighbours, in seconds; those that are not heard in time are left out of
            the round. None waits for all.
    """

    def __init__(
        self,
        *,
        local: Local,
        compression: Literal["top", "quantised"] = "top",
        share: PositiveShare = 0.1,
        bits: Literal[8, 16] = 8,
        pace: PositiveShare = 0.3,
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        self.update, self.pace, self.timeout_s = LocalSGD(local), pace, timeout_s
        self.codec: Codec = Sparse(share) if compression == "top" else Quantised(bits)

    def setup(self, graph: Graph) -> None:
        """Compute the mixing weights."""
        self.graph, self.mixing = graph, neighbour_weights(graph)

    def facts(self) -> Mapping[str, float]:
        """Say how fast the topology mixes without compression."""
        return facts(self.graph)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        mine, theirs = dict.fromkeys(node.neighbours, model), dict.fromkeys(node.neighbours, model)
        node.start(self.listen(node, theirs))
        for round in node.rounds():
            model = yield from node.train(self.update, model, round)
            self.tell(node, model, mine, round)
            heard = yield from node.receive_models(node.neighbours, round, self.timeout_s, "heard")
            model = self.mix(node.id, model, mine, heard)
            node.finish(round, model)

    def tell(self, node: Peer, model: Deferred, mine: dict[int, Deferred], round: int) -> None:
        """Send every neighbour the compressed difference between the model and what it knows of it."""

        def on_end(
            old: Deferred, new: Deferred, difference: Deferred, neighbour: int, delivered: bool
        ) -> None:
            if not delivered:  # to the last bit what it was, unless something else has been sent since
                mine[neighbour] = old if mine[neighbour] is new else mine[neighbour] - difference

        item = getattr(torch, node.dtype).itemsize
        beside = node.model_bytes - node.parameters * item
        size = self.size_bytes(node.parameters, item) + beside
        for known in dict.fromkeys(mine.values()):  # one vector for all neighbours, unless a message was lost
            difference = Deferred(Compress(self.codec, node.parameters), {"of": model - known})
            told = [neighbour for neighbour in node.neighbours if mine[neighbour] is known]
            new = known + difference
            mine |= dict.fromkeys(told, new)
            node.send(told, (difference,), size, round, "difference", partial(on_end, known, new, difference))

    def listen(self, node: Peer, theirs: dict[int, Deferred]) -> Process:
        """Add up what neighbours send, in whatever round it comes, and note what they hold after it."""
        seen: dict[tuple[int, int], None] = {}
        while True:
            message = yield from node.receive("difference")
            if (message.src, message.round) in seen:  # the network may deliver a message twice
                continue
            seen[message.src, message.round] = None
            if len(seen) > RECENT * len(theirs):
                del seen[next(iter(seen))]
            theirs[message.src] = theirs[message.src] + message.payload[0]
            node.node.deliver(message._replace(kind="heard", payload=theirs[message.src]))

    def mix(
        self, node: int, own: Deferred, mine: Mapping[int, Deferred], heard: Mapping[int, Deferred]
    ) -> Deferred:
        """Move towards the neighbours' copies, and away from one's own."""
        weights = [self.pace * self.mixing[node][neighbour] for neighbour in heard]
        copies = [copy for neighbour, theirs in heard.items() for copy in (theirs, mine[neighbour])]
        return combine([own, *copies], [1.0, *(sign * weight for weight in weights for sign in (1, -1))])

    def size_bytes(self, parameters: int, item_bytes: int) -> int:
        """Return the size of a compressed vector.

        >>> top, quantised = Choco(local=Local()), Choco(local=Local(), compression="quantised")
        >>> top.size_bytes(100, 4), quantised.size_bytes(100, 4)
        (80, 104)
        """
        pieces = self.codec.pieces(parameters, {4: "float32", 8: "float64"}[item_bytes])
        return sum(prod(shape) * getattr(torch, kind).itemsize for shape, kind in pieces.values())
