"""What a run leaves behind, and how often it is saved, as blocks of the experiment file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedsim.ranges import Count, Duration
from fedsim.spec.blocks import Block, OpenBlock


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


class Tracker(OpenBlock):
    """Where a run's numbers go besides its record; other keys are the tracker's own parameters."""

    name: str = Field(description="an entry point's name or a dotted path")
    on_failure: Literal["drop", "stop"] = Field(
        default="drop",
        description="what a tracker that raises does: the run goes on without it, with a warning, or it stops",
    )

    @model_serializer(mode="wrap")
    def _written(self, write_block: SerializerFunctionWrapHandler) -> Any:
        plain = not self.params and self.on_failure == "drop"
        return self.name if plain else dict(sorted(write_block(self).items()))


class Record(Block):
    """What a run leaves behind."""

    events: bool = Field(default=True, description="keep every message and computation")
    report: bool = Field(default=True, description="write a report at the end")
    weights_every: Count | None = Field(
        default=None,
        description="rounds between two whose models are kept, in the folder models; null keeps the last one alone",
    )
    cohorts: bool = Field(
        default=False,
        description="say in every round of a server how many clients have answered ever and in the last ten rounds "
        "(clients_seen, clients_lately), how many labels these had (labels_lately, the exponential of the entropy), "
        "how far models went (drift, the mean distance from the one that was sent), and how much they went the same "
        "way (agreement, from 0 to 1), where clients send models and not differences",
    )
    trackers: list[Tracker] = Field(
        default_factory=list,
        description="where the numbers of every round go besides the record, each a part with `on_failure`: `drop` "
        "(the run goes on without a tracker that raises, with a warning) or `stop`",
    )
    checkpoint: Checkpoints | None = Field(
        default=Checkpoints(),
        description="how often the run is saved, so that it can go on; null never saves it, as for a Flower app whose "
        "world says nothing of it",
    )
