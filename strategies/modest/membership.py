"""Who is there, as MoDeST's nodes tell each other: joins, goodbyes and signs of life."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import simpy

from fedsim.methods.peer import Peer
from fedsim.rng import stream
from fedsim.world.clock import Process, micros
from fedsim.world.net.network import Message
from strategies.modest.registry import NEVER, View

ADVERT_BYTES = 195
"""The size of the authors' datagram, signature included."""


class Rules(Protocol):
    """What all nodes share; see :class:`strategies.modest.modest.MoDeST`."""

    seed: int
    sample_size: int
    horizon: int


class Membership(ABC):
    """A node's part in telling who is there, and what it learns of that.

    Attributes:
        rules: the parameters that all nodes share.
        peer: the node.
        view: whom it knows.
        events: how often it has joined or left.
        leaving: whether it leaves for good.
    """

    rules: Rules
    peer: Peer
    id: int
    view: View
    events: int
    leaving: bool

    @property
    @abstractmethod
    def round(self) -> int:
        """The latest round that it knows of."""

    @abstractmethod
    def _at_work(self) -> simpy.Process | None:
        """Return what it is doing for a round, if anything."""

    def _announce(self, joined: bool) -> None:
        """Tell some others that this node has joined or leaves; one that joins may know little of who is there."""
        self.events += 1
        self.view.change(self.id, self.events, joined)
        self._advertise(joined, NEVER if joined else self.round - self.rules.horizon, "advert", self.events)

    def _advertise(self, joined: bool, least: int, purpose: str, number: int) -> None:
        known = self.view.candidates(least)
        others = known[known != self.id]
        rng = stream(self.rules.seed, f"modest {purpose}", self.id, number)
        chosen = rng.choice(len(others), min(self.rules.sample_size, len(others)), replace=False)
        receivers = others[sorted(chosen)].tolist()
        self.peer.send(receivers, (self.events, joined), ADVERT_BYTES, self.round, "advert")

    def _advert(self, message: Message) -> None:
        (counter, joined), round = message.payload, max(message.round, self.round)
        if joined and message.src in self.view and self.view[message.src].counter >= counter:
            self.view.touch(message.src, round)
        elif joined:
            self.view.expect(message.src, round, counter)
        else:
            self.view.change(message.src, counter, joined)

    def _retire(self) -> Process:
        """Say goodbye, and finish what has been begun."""
        self.leaving = True
        self._announce(joined=False)
        while (process := self._at_work()) is not None:
            yield process

    def _beat(self, every_s: float) -> Process:
        """Show that it is there when rounds have passed, which is what makes the others forget it."""
        clock, told = self.peer.node.clock, 0
        yield clock.timeout(micros(every_s * stream(self.rules.seed, "modest beat", self.id).random()))
        while True:
            if self.peer.node.online and self.round > told and self._at_work() is None and not self.leaving:
                told = self.round
                self._advertise(True, told - self.rules.horizon, "heartbeat", told)
            yield clock.timeout(micros(every_s))
