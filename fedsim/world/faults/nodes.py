"""Failure injection at nodes; :mod:`fedsim.world.faults.links` has what befalls the network.

A fault part is a class like these, or a function ``name(world, rng, *, …)`` that checks its parameters, draws its
schedule and returns a SimPy process. Faults and churn do not know each other: a node is online while none of them
keeps it offline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedsim.errors import MISSING, BadValue
from fedsim.parts import NotNegative, Positive
from fedsim.ranges import Whole
from fedsim.rng import stream
from fedsim.world.clock import Process, micros
from fedsim.world.faults.schedule import Fault, Step, Who, Window, span
from fedsim.world.node import Corruption, Node
from fedsim.world.world import World

Factor = Annotated[float, Field(ge=1, le=1_000_000)]

Kind = Literal["nan", "sign_flip", "noise", "zeros", "scale"]


@dataclass(kw_only=True)
class Crash(Who, Fault):
    """Nodes stop for good at a given time; who has crashed already may be chosen again, and nothing happens."""

    def steps(self, world: World, rng: np.random.Generator) -> list[Step]:
        """Draw the victims of each occurrence."""
        starts_us = self.starts_us()
        victims = [self.choose(world, rng) for _ in starts_us]
        return [(at, node.crash) for at, each in zip(starts_us, victims) for node in each]


@dataclass(kw_only=True)
class NodeWindow(Who, Window):
    """A fault that comes and goes at nodes."""

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Draw the victims of each occurrence."""
        return [self.choose(world, rng) for _ in range(self.times)]

    def begin(self, world: World, target: Any) -> None:
        """Strike each of them."""
        for node in target:
            self.strike(node)

    def end(self, world: World, target: Any) -> None:
        """Let go of each of them."""
        for node in target:
            self.release(node)

    def strike(self, node: Node) -> None:
        """Strike one node; by default it is down."""
        _fail(node)

    def release(self, node: Node) -> None:
        """Let go of one node; by default it is back."""
        _recover(node)


@dataclass(kw_only=True)
class CrashRecover(NodeWindow):
    """Nodes stop at a given time and are back a while later.

    Args:
        down_s: how long they are down, in seconds.
    """

    down_s: Positive
    length = "down_s"


@dataclass(kw_only=True)
class ServerCrash(Window):
    """The server stops at a given time and is back a while later, remembering everything.

    What was on its way to or from it is lost, and so is what clients send meanwhile.

    Args:
        down_s: how long it is down, in seconds.
        server: which one, where there are several, from 0.
    """

    down_s: Positive
    server: Whole = 0
    length = "down_s"

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Find the server."""
        if not world.servers:
            raise BadValue("name", "server_crash", "needs a server, and this strategy has only peers")
        if self.server >= len(world.servers):
            raise BadValue("server", self.server, f"servers are 0 to {len(world.servers) - 1}")
        return [world.servers[self.server]] * self.times

    def begin(self, world: World, target: Any) -> None:
        """Take it down."""
        _fail(target)

    def end(self, world: World, target: Any) -> None:
        """Bring it back."""
        _recover(target)


@dataclass(kw_only=True)
class Flaky(Who):
    """Nodes fail and recover again and again, after exponentially distributed times.

    Args:
        mtbf_s: mean time until the next failure, in seconds.
        mttr_s: mean time to repair, in seconds.
    """

    mtbf_s: Positive
    mttr_s: Positive

    def process(self, world: World, rng: np.random.Generator) -> Process:
        """Draw the victims, and return the process that sets them going."""
        means_s = self.mtbf_s, self.mttr_s
        for key, mean_s in zip(("mtbf_s", "mttr_s"), means_s, strict=True):
            span(key, mean_s)
        victims = self.choose(world, rng)
        return _flaky(world, victims, int(rng.integers(2**63)), means_s)


def _flaky(world: World, victims: list[Node], seed: int, means_s: tuple[float, float]) -> Process:
    for node in victims:
        world.clock.process(_fail_and_recover(node, stream(seed, "flaky", node.id), means_s))
    yield world.clock.timeout(0)


def _fail_and_recover(node: Node, rng: np.random.Generator, means_s: tuple[float, float]) -> Process:
    while not node.crashed:
        for mean_s, act in zip(means_s, (_fail, _recover), strict=True):
            yield node.clock.timeout(max(1, micros(rng.exponential(mean_s))))
            act(node)


@dataclass(kw_only=True)
class SlowDown(NodeWindow):
    """Work takes longer for a while, also what is left of work that has begun.

    Args:
        for_s: for how long, in seconds.
        factor: how many times as long work takes; where occurrences overlap, their factors multiply.
    """

    for_s: Positive
    factor: Factor

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise BadValue("factor", self.factor, "must be finite")
        self._exact = Fraction(str(self.factor))

    def strike(self, node: Node) -> None:
        """Multiply."""
        _slow("slow", self._exact, node)

    def release(self, node: Node) -> None:
        """Divide."""
        _slow("normal", 1 / self._exact, node)


@dataclass(kw_only=True)
class Corrupt(Who, Window):
    """The models that nodes send are not what they should be.

    Args:
        kind: ``nan``; ``sign_flip``, times -1; ``noise``, with normal noise of the standard deviation ``scale``
            added; ``zeros``; or ``scale``, times ``scale``.
        scale: for ``noise`` and ``scale``.
        checked: whether a value that is not finite stops the run; if not, the strategy has to cope with it.
        for_s: for how long, in seconds; by default until the end.
    """

    kind: Kind
    scale: float = 1.0
    checked: bool = True
    at_s: NotNegative = 0.0
    for_s: Positive | None = None

    def __post_init__(self) -> None:
        kind, scale = self.kind, self.scale
        if not math.isfinite(scale):
            raise BadValue("scale", scale, "must be finite")
        if kind == "scale" and scale == 1.0:
            raise BadValue("scale", MISSING, "is required for the kind scale, and must not be 1")
        if kind not in ("noise", "scale") and scale != 1.0:
            raise BadValue("scale", scale, f"means nothing for the kind {kind}", "leave it out")

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Draw the victims of each occurrence, and the seeds of their noise."""
        victims = [self.choose(world, rng) for _ in range(self.times)]
        if any(node in world.servers for each in victims for node in each):
            rule = "names the server, and only what clients or peers send can be corrupted"
            raise BadValue("nodes", self.nodes, rule)
        seeds = [int(seed) for seed in rng.integers(2**63, size=self.times)]
        corruptions = [Corruption(self.kind, self.scale, seed, self.checked) for seed in seeds]
        return list(zip(corruptions, victims, strict=True))

    def begin(self, world: World, target: Any) -> None:
        """Let them send something else."""
        corruption, victims = target
        for node in victims:
            node.corruptions += (corruption,)
            node.log.add("corrupt", node.id)

    def end(self, world: World, target: Any) -> None:
        """Let them be honest again."""
        corruption, victims = target
        for node in victims:
            at = node.corruptions.index(corruption)
            node.corruptions = node.corruptions[:at] + node.corruptions[at + 1 :]
            node.log.add("honest", node.id)


def _fail(node: Node) -> None:
    if not node.crashed:
        node.log.add("fail", node.id)
    node.block()


def _recover(node: Node) -> None:
    if not node.crashed:
        node.log.add("recover", node.id)
    node.unblock()


def _slow(kind: str, factor: Fraction, node: Node) -> None:
    node.slow(factor)
    node.log.add(kind, node.id, size=round(node.slowness * 1000))
