"""The type of a topology."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    Graph = nx.Graph[int]
else:  # at run time NetworkX's graphs take no type arguments, and parts read their annotations
    Graph = nx.Graph
