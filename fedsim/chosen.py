"""Whom something befalls: nodes that are named, so many of them, or a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.ranges import Count, Share


@dataclass(kw_only=True)
class Chosen:
    """Whom something hits.

    Args:
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random each time; or
        fraction: what share of them, to the nearest whole number, chosen at random each time.
    """

    nodes: list[int] | None = None
    count: Count | None = None
    fraction: Share | None = None

    @property
    def everybody(self) -> bool:
        """Whether nobody in particular is named."""
        return self.nodes is None and self.count is None and self.fraction is None

    def among(self, members: Sequence[int], known: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Return the ids of those that are hit, sorted.

        Args:
            members: the clients or peers.
            known: all nodes that can be named.
            rng: draws.

        Raises:
            BadValue: unless exactly one of nodes, count and fraction is given and there are such nodes.

        >>> Chosen(nodes=[3, 1, 1]).among(range(4), range(5), np.random.default_rng(0))
        [1, 3]
        """
        if sum(choice is not None for choice in (self.nodes, self.count, self.fraction)) != 1:
            raise BadValue("nodes", MISSING, "give exactly one of nodes, count and fraction")
        if self.nodes is not None:
            check_named("nodes", self.nodes, known)
            return sorted(set(self.nodes))
        fraction = self.fraction or 0.0
        size = self.count if self.count is not None else round(fraction * len(members))
        if size > len(members):
            raise BadValue("count", size, f"at most {len(members)}, the number of clients or peers")
        if fraction and not size:
            least = f"must be at least {0.5 / len(members):.3g} to hit one of {len(members)} clients or peers"
            raise BadValue("fraction", fraction, f"{least}, or 0")
        picked = rng.choice(len(members), size=size, replace=False)
        return [members[int(index)] for index in sorted(picked)]


def check_named(key: str, nodes: Sequence[int], known: Sequence[int]) -> None:
    """Refuse a list of nodes that is empty or names one that does not exist."""
    if not nodes:
        raise BadValue(key, nodes, "must name at least one node")
    unknown = sorted(set(nodes) - set(known))
    if unknown:
        raise BadValue(key, nodes, f"no such node: {unknown[0]}", f"nodes are 0 to {len(known) - 1}")
