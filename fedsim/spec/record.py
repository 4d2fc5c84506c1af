"""What a run leaves behind, and how often it is saved, as blocks of the experiment file."""

from __future__ import annotations

from pydantic import Field

from fedsim.ranges import Count, Duration
from fedsim.spec.blocks import Block


class Checkpoints(Block):
    """How often a run is saved, so that it can go on after it was stopped."""

    every_rounds: Count | None = Field(default=None, description="rounds between two checkpoints")
    every_sim_s: Duration | None = Field(
        default=None, description="simulated seconds between two checkpoints"
    )
    every_wall_s: Duration | None = Field(
        default=60.0,
        description="seconds of real time between two checkpoints, or 50 times as long as one takes, if that is more; "
        "null looks at no clock",
    )
    keep: Count = Field(default=2, description="how many checkpoints are kept, the latest ones")


class Record(Block):
    """What a run leaves behind."""

    events: bool = Field(default=True, description="keep every message and computation")
    report: bool = Field(default=True, description="write a report at the end")
    weights_every: Count | None = Field(
        default=None,
        description="rounds between two whose models are kept, in the folder models; null keeps the last one alone",
    )
    checkpoint: Checkpoints | None = Field(
        default=Checkpoints(),
        description="how often the run is saved, so that it can go on; null never saves it, as for a Flower app whose "
        "world says nothing of it",
    )
