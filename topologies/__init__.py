"""Topologies: who is linked to whom, and how much neighbours weigh.

A topology is a function ``name(n, …, *, seed)`` over the nodes 0 … n-1 that returns a connected graph, or a list of
graphs, one for each round, that repeats. Graphs may be directed, for the methods that can use such. Any installed
package, or a dotted path to a user's own file, adds more.
"""

from __future__ import annotations

from topologies.directed import directed_exponential, directed_ring
from topologies.files import file
from topologies.graphs import (
    complete,
    erdos_renyi,
    exponential,
    random_regular,
    require_connected,
    ring,
    small_world,
    star,
    torus,
)
from topologies.mixing import metropolis_hastings, mixing_rounds, neighbour_weights, spectral_gap
from topologies.sequences import base_graph, one_peer_exponential, random_matchings
from topologies.structured import geometric, stochastic_block, tree

__all__ = [
    "base_graph",
    "complete",
    "directed_exponential",
    "directed_ring",
    "erdos_renyi",
    "exponential",
    "file",
    "geometric",
    "metropolis_hastings",
    "mixing_rounds",
    "neighbour_weights",
    "one_peer_exponential",
    "random_matchings",
    "random_regular",
    "require_connected",
    "ring",
    "small_world",
    "spectral_gap",
    "star",
    "stochastic_block",
    "torus",
    "tree",
]
