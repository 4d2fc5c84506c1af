"""Stable identities in a real deployment: nodes are known by the partitions of the data that they hold."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.errors import BadValue, RunError
from fedsim.flower import compat
from fedsim.flower.gridview import Shown

WHO = "query.partition"
"""The message type that asks a node which partition it holds; :func:`fedsim.flower.client_app` answers it."""
KEY = "partition-id"
WAIT_S = 1.0
TRIES = 3
"""So often a node may fail to say what it holds."""

log = logging.getLogger("fedsim")


class ByPartition(Shown):
    """Shows a strategy the nodes' partitions instead of their ids.

    The ids of a deployment are drawn anew by every SuperLink. A strategy that draws its cohorts and sums its replies
    in the order of ids gives the same model every time only if the ids are always the same. Nodes are asked once,
    when they are first seen; one that does not answer is not shown, and asked again later. One whose ClientApp fails
    to answer again and again ends the run: :func:`fedsim.flower.client_app` makes one that can.

    Args:
        grid: the deployment's, or a simulated one.
        nodes: how many nodes to wait for before anything else.
        timeout_s: how long a node may take to say what it holds.
    """

    def __init__(self, grid: Grid, nodes: int = 1, timeout_s: float = 600.0) -> None:
        if nodes < 1:
            raise BadValue("nodes", nodes, "must be at least 1")
        super().__init__(grid)
        self._timeout_s = timeout_s
        self._partition: dict[int, int] = {}
        self._node: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._failures: Counter[int] = Counter()
        while len(self.get_node_ids()) < nodes:
            time.sleep(WAIT_S)

    def get_node_ids(self) -> list[int]:
        """Return the partitions that are online, sorted."""
        ids = list(self.grid.get_node_ids())
        self._meet([id for id in ids if id not in self._partition])
        return sorted(self._partition[id] for id in ids if id in self._partition)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to partitions and return their ids."""
        sent = [self._addressed(message) for message in messages]
        ids = list(self.grid.push_messages(sent))
        self._asked.update(zip(ids, (message.metadata.dst_node_id for message in sent), strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, as coming from partitions."""
        return self._signed(self.grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages to partitions and wait for the replies, at most so many seconds."""
        sent = [self._addressed(message) for message in messages]
        replies = list(self.grid.send_and_receive(sent, timeout=timeout))
        self._asked.update((message.metadata.message_id, message.metadata.dst_node_id) for message in sent)
        return self._signed(replies)

    def _meet(self, ids: list[int]) -> None:
        """Ask new nodes what they hold."""
        if not ids:
            return
        question = RecordDict({"config": ConfigRecord({"ask": KEY})})
        replies = self.grid.send_and_receive(
            [Message(question, id, WHO) for id in sorted(ids)], timeout=self._timeout_s
        )
        for reply in replies:
            if reply.has_error():
                self._failed(reply)
                continue
            self._know(reply.metadata.src_node_id, int(str(reply.content.config_records["node"][KEY])))

    def _failed(self, reply: Message) -> None:
        """Take note that a node does not say what it holds; one that has gone may come back, others get no better."""
        node, why = reply.metadata.src_node_id, reply.error.reason
        log.warning("a node does not say which partition it holds: %s", why)
        self._failures[node] += reply.error.code not in compat.GONE
        if self._failures[node] >= TRIES:
            hint = "its ClientApp must be one that fedsim.flower.client_app has made"
            reason = f"node {node} has failed {TRIES} times to say which partition it holds; {hint} ({why})"
            raise RunError(reason, phase=WHO)

    def _know(self, node: int, partition: int) -> None:
        known = self._node.get(partition)
        if known is not None and known in set(self.grid.get_node_ids()):
            reason = f"the nodes {known} and {node} both hold partition {partition}; give each its own {KEY}"
            raise RunError(reason, phase=WHO)
        if known is not None:
            del self._partition[known]  # a node that was started again
        self._partition[node], self._node[partition] = partition, node

    def _addressed(self, message: Message) -> Message:
        given = message.metadata
        if given.dst_node_id not in self._node:
            raise RunError(f"no node holds partition {given.dst_node_id}", phase=given.message_type)
        node = self._node[given.dst_node_id]
        return Message(message.content, node, given.message_type, ttl=given.ttl, group_id=given.group_id)

    def _signed(self, replies: Iterable[Message]) -> list[Message]:
        signed = list(replies)
        for reply in signed:
            # That a node is gone is said by the SuperLink, so the reply's own sender would be misleading.
            asked = self._asked.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            compat.set_sender(reply, self._partition[asked])
        return signed
