"""Which server a client belongs to, in a world with several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from fedsim.errors import BadValue
from fedsim.rng import stream

Way = tuple[int, int]
"""How long a way is: its latency in microseconds, and its links."""

Rule = Literal["nearest", "random"] | Sequence[int]


def homes(
    rule: Rule, clients: int, servers: Sequence[int], way: Callable[[int, int], Way], seed: int
) -> list[int]:
    """Return the server of each client.

    Args:
        rule: nearest, by the latency from the server, of equally near ones that over the fewest links, of those that
            with the fewest clients so far; random, as many to each as can be; or the numbers of the servers, from 0.
        clients: how many clients there are; they are the nodes from 0.
        servers: the servers' nodes.
        way: how long the way from one node to another is.
        seed: the experiment's.

    Raises:
        BadValue: with the key ``assign``, if a list does not fit, or a server has no clients.

    >>> homes("nearest", 3, [3, 4], lambda server, client: ([7, 7, 1][client] if server == 3 else 7, 1), 0)
    [3, 4, 3]
    >>> homes([1, 0, 1], 3, [3, 4], lambda server, client: (0, 1), 0)
    [4, 3, 4]
    """
    if rule == "nearest":
        found = _nearest(clients, servers, way)
    elif isinstance(rule, str):
        order = stream(seed, "homes").permutation(clients)
        turns = {int(client): turn for turn, client in enumerate(order)}
        found = [servers[turns[client] % len(servers)] for client in range(clients)]
    else:
        found = _listed(rule, clients, servers)
    for number, server in enumerate(servers):
        if server not in found:
            why = ": others are nearer to all" if rule == "nearest" else ""
            hint = "give it another site, or links of its own, as the topology stars does" if why else ""
            shown = rule if isinstance(rule, str) else list(rule)
            raise BadValue(
                "assign", shown, f"leaves server {number} (node {server}) without clients{why}", hint
            )
    return found


def _nearest(clients: int, servers: Sequence[int], way: Callable[[int, int], Way]) -> list[int]:
    # A column for each server: the quickest ways from one node are found all at once.
    away = [[way(server, client) for client in range(clients)] for server in servers]
    counts: Counter[int] = Counter()
    found = []
    for client in range(clients):
        near = min(range(len(servers)), key=lambda number: (away[number][client], counts[number], number))
        counts[near] += 1
        found.append(servers[near])
    return found


def _listed(rule: Sequence[int], clients: int, servers: Sequence[int]) -> list[int]:
    if len(rule) != clients:
        raise BadValue(
            "assign", list(rule), f"names {len(rule)} clients' servers, and there are {clients} clients"
        )
    wrong = next((number for number in rule if number >= len(servers)), None)
    if wrong is not None:
        raise BadValue("assign", wrong, f"servers are 0 to {len(servers) - 1}")
    return [servers[number] for number in rule]
