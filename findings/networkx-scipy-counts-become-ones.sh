#!/usr/bin/env bash
# networkx 3.6.1 with scipy 1.17.1: from_scipy_sparse_array gives another graph for the COO form of a matrix than for
# the CSR form of the same matrix: of entries for the same pair it keeps the last one instead of their sum.
#
# Seen: five messages, three of them from 0 to 1, counted as a COO array of ones: the link 0 -> 1 has weight 1. After
# .tocsr() it has weight 3.
# Expected: 3 in both. SciPy's documentation of coo_array ("Intended usage") says that repeated entries are summed
# when the array is converted, which is how counts are built from lists of pairs; its toarray() has 3 there. NetworkX
# documents that an entry of the matrix is the weight of the edge and says nothing about storage.
# Why it matters: contact traces and traffic logs are turned into weighted graphs in just this way, and scipy.io.mmread
# returns COO, too. Mixing weights and bandwidths then come from the last event of each pair.
# Right value: nx.from_scipy_sparse_array(matrix.tocsr(), …), or matrix.sum_duplicates() first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet networkx==3.6.1 scipy==1.17.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import networkx as nx
import numpy as np
import scipy

senders, receivers = [0, 0, 0, 1, 0], [1, 1, 1, 2, 2]
messages = scipy.sparse.coo_array((np.ones(5, dtype=int), (senders, receivers)), shape=(3, 3))


def weights(matrix):
    graph = nx.from_scipy_sparse_array(matrix, create_using=nx.DiGraph)
    return {(int(a), int(b)): int(weight) for a, b, weight in graph.edges(data="weight")}


summed = messages.copy()
summed.sum_duplicates()
dense = messages.toarray()
expected = {(a, b): int(dense[a, b]) for a, b in np.argwhere(dense).tolist()}
print("networkx", nx.__version__, "scipy", scipy.__version__)
print("COO                      ", weights(messages))
print("CSR of the same matrix   ", weights(messages.tocsr()))
print("COO after sum_duplicates ", weights(summed))
print("expected for all         ", expected)
assert weights(messages.tocsr()) == weights(summed) == expected == {(0, 1): 3, (0, 2): 1, (1, 2): 1}
assert weights(messages) == {(0, 1): 1, (0, 2): 1, (1, 2): 1}, "repeated entries are summed now"
PYTHON
