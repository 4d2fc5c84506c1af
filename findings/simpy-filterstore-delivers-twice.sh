#!/usr/bin/env bash
# simpy 4.1.2: FilterStore.get(filter) hands out the item that the filter chose, but removes the first item that
# compares equal to it.
#
# Seen: with messages that compare by priority only, asking for b's message twice gives it twice, and a's message,
# which nobody took, is gone.
# Expected: the chosen item leaves the store, once. The API reference of FilterStore says that get requests an item
# "for which filter returns True, out of the store"; items need not differ under ==. A class ordered by one field
# with the payload marked compare=False is the pattern that Python's documentation of heapq gives for priority
# queues, and the same class is what one puts into simpy's PriorityStore.
# Why it matters: an inbox where a node waits for one sender's message is a FilterStore; one update is aggregated
# twice, another never, and the count of messages is right.
# Right value: compare by identity, @dataclass(eq=False), or give every message a number that takes part in ==.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet simpy==4.1.2
"$work/venv/bin/python" - <<'PYTHON'
from dataclasses import dataclass, field

import simpy

print("simpy", simpy.__version__)


@dataclass(order=True)
class ByPriority:
    priority: int
    sender: str = field(compare=False)


@dataclass(eq=False)
class ByIdentity:
    priority: int
    sender: str


def deliveries(message):
    env = simpy.Environment()
    inbox = simpy.FilterStore(env)
    taken = []

    def node():
        for sender in "ab":
            yield inbox.put(message(0, sender))
        for _ in range(2):
            request = inbox.get(lambda item: item.sender == "b")
            answer = yield request | env.timeout(1)
            taken.extend(item.sender for item in answer.values() if item is not None)
            request.cancel()

    env.process(node())
    env.run()
    return taken, [item.sender for item in inbox.items]


seen = deliveries(ByPriority)
right = deliveries(ByIdentity)
print(f"two messages, from a and from b; b's asked for twice\n  got      taken {seen[0]}, left {seen[1]}")
print(f"  expected taken {right[0]}, left {right[1]} (so it is with messages that compare by identity)")
assert right == (["b"], ["a"])
assert seen == (["b", "b"], []), "the chosen item is the one removed now"
PYTHON
