"""How transfers share bandwidth.

A transfer crosses links of limited capacity: its sender's uplink, its receiver's downlink, and any edge on the way that
has a limit.
"""

from __future__ import annotations

from fedsim.world.net.flows import EPSILON, Flow, Link, Sharing
from fedsim.world.net.maxmin import MaxMin


class Unshared(Sharing):
    """Every flow has its narrowest link for itself."""

    bundles = True

    def start(self, flow: Flow) -> None:
        """Begin to send at full speed."""
        self.set_rate(flow, min(link.capacity for link in flow.path.links))

    def stop(self, flow: Flow) -> None:
        """Nothing to give back."""
        self.set_rate(flow, 0.0)


class Greedy(Sharing):
    """First come, first served: a transfer takes what is left, and keeps it.

    A transfer that finds nothing left at its receiver waits there. When one ends, the receiver's other transfers
    speed up first, and then the sender's next one starts. An edge limits single transfers, and is not shared out.

    This is how the simulators of Plexus and DecLearn share bandwidth (de Vos et al., EuroMLSys 2025).
    """

    def start(self, flow: Flow) -> None:
        """Queue at the sender."""
        flow.path.up.waiting[flow] = None
        self._serve(flow.path.up)

    def stop(self, flow: Flow) -> None:
        """Give the rate back, first to the receiver's other transfers, then to the sender's queue."""
        flow.path.up.waiting.pop(flow, None)
        flow.path.down.waiting.pop(flow, None)
        if flow not in flow.path.down.flows:
            return
        del flow.path.down.flows[flow]
        flow.path.up.used -= flow.rate
        flow.path.down.used -= flow.rate
        self.set_rate(flow, 0.0)
        for other in [*flow.path.down.flows, *flow.path.down.waiting]:
            self._give(other)
        self._serve(flow.path.up)

    def _serve(self, up: Link) -> None:
        """Start the transfers that queue at a sender."""
        for flow in list(up.waiting):
            if up.spare <= EPSILON:
                return
            if not self._give(flow):
                flow.path.down.waiting[flow] = None

    def _give(self, flow: Flow) -> bool:
        """Let a flow take all that both its ends have to spare, and say whether that was anything."""
        more = min(flow.path.up.spare, flow.path.down.spare, flow.path.limit - flow.rate)
        if more <= EPSILON:
            return False
        flow.path.up.waiting.pop(flow, None)
        flow.path.down.waiting.pop(flow, None)
        flow.path.down.flows[flow] = None
        flow.path.up.used += more
        flow.path.down.used += more
        self.set_rate(flow, flow.rate + more)
        return True


KINDS: dict[str, type[Sharing]] = {"none": Unshared, "max-min": MaxMin, "greedy": Greedy}
"""The ways to share, by the name that an experiment file gives them."""
