"""FedAMD without a server: anchors and miners in MoDeST's samples, and the sum of the caches goes with the model.

FedAMD: F. Wu, S. Guo, Z. Qu, S. He, Z. Liu, J. Gao: Anchor Sampling for Federated Learning with Partial Client
Participation. ICML 2023, PMLR 202:37379-37416. MoDeST: A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma,
M. de Vos: Practical Federated Learning without a Server (Plexus). EuroMLSys 2025. Putting one into the other is ours.

Every node keeps its own cached gradient. With the model go the sum of all caches, and in which round each node was last
heard of: an anchor whose reply was lost thus knows which of its gradients is in the sum, and sends the difference to
that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim import rng
from fedsim.learn.deferred import combine, mean
from fedsim.methods.peer import Peer
from fedsim.parts import Count, Share
from fedsim.world.clock import Process
from strategies.fedamd.fedamd import KeepingAnchor, Miner
from strategies.modest.modest import Carried, MoDeST

HEARD_BYTES = 8
"""What a node's number and the round in which it was last heard of take in a message."""


@dataclass(kw_only=True, eq=False)
class MoDeSTAMD(MoDeST):
    """Anchors and miners of FedAMD in samples that nodes find for themselves, without a server (ours, of two papers).

    Everybody draws the same roles. Until there is a cache, everybody is an anchor. Where one aggregator hears from
    everybody, models are those of ``fedamd`` with ``caches: lazy`` and the same cohorts.

    Args:
        local: local steps (K), mini-batch size (b') and learning rate of the miners.
        seed: names the streams of roles, shuffles and receivers of adverts.
        p: with which probability a node of a sample is an anchor.
        large_batch: batch size of the anchors (b); None for all their samples.
        sample_size, aggregators, success_fraction, ping_timeout_s, window, aggregator_timeout_s, minimum_models: as for
            :class:`strategies.modest.modest.MoDeST`.
        resend_s, heartbeat_s, aggregator_choice, entry_bytes: as there.
    """

    p: Share = 0.5
    large_batch: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.update, self.anchor = Miner(self.local), KeepingAnchor(self.large_batch)

    def is_anchor(self, round: int, node: int) -> bool:
        """Return the role of a node in a round; rounds count from 1."""
        return bool(rng.stream(self.seed, "role", node, round).random() < self.p)

    def first(self, peer: Peer) -> Carried:
        """Begin with the initial model and no caches."""
        return peer.initial_model, peer.zeros, {}

    def train(self, peer: Peer, carried: Carried, round: int) -> Process:
        """Send a model and the sum of the caches, and, as an anchor, by how much the own cache changes."""
        model, total, heard = carried
        if not heard or self.is_anchor(round, peer.id):
            numbers = {"round": round, "heard": heard.get(peer.id, -1)}
            result = yield from peer.visit(self.anchor, {"arrays": model}, round, numbers)
            return model, total, heard, result.pick("arrays")
        given = {"arrays": model, "anchor-mean": total / len(heard)}
        result = yield from peer.visit(self.update, given, round)
        return model - result.pick("arrays"), total, heard, None

    def merge(self, round: int, box: Mapping[int, Carried]) -> Carried:
        """Average the miners' models, add the changes to the sum, and take note of whose caches are new.

        Averages of several aggregators may come together here. Their sums are not mixed: the one that knows the latest
        gradients goes on, and a change counts if it is one of a cache that is in that sum.
        """
        miners = [model for model, _, _, change in box.values() if change is None]
        models = miners or list(dict.fromkeys(model for model, *_ in box.values()))
        _, total, heard, _ = max(
            box.values(), key=lambda carried: (sum(carried[2].values()), len(carried[2]))
        )
        changes = {
            node: change
            for node, (_, _, known, change) in box.items()
            if change is not None and known.get(node) == heard.get(node)
        }
        total = combine([total, *changes.values()], [1.0] * (1 + len(changes)))
        return mean(models), total, {**heard, **dict.fromkeys(changes, round)}

    def size(self, peer: Peer, carried: Carried) -> int:
        """Count the model, the sum once there is one, the change, and who was heard of."""
        _, _, heard, *change = carried
        vectors = 1 + bool(heard) + sum(one is not None for one in change)
        return vectors * peer.model_bytes + HEARD_BYTES * len(heard)
