"""What a run says of itself while it goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        round: rounds that have ended.
        rounds: how many there will be, or None.
        sim_time_s: simulated seconds.
        sim_limit_s: when the run will end, or None.
        accuracy: the latest test accuracy, or None.
        loss: the latest test loss, or None.
        bytes_up: bytes sent by all nodes.
        bytes_down: bytes received by all nodes.
        clients: client updates that have arrived.
        wall_time_s: real seconds.
    """

    round: int
    rounds: int | None
    sim_time_s: float
    sim_limit_s: float | None
    accuracy: float | None
    loss: float | None
    bytes_up: int
    bytes_down: int
    clients: int
    wall_time_s: float
