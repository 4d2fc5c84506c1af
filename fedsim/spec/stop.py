"""When a run ends, as a block of the experiment file."""

from __future__ import annotations

from pydantic import Field, model_validator

from fedsim.ranges import Count, Duration
from fedsim.spec.blocks import Block


class Target(Block):
    """A result that is good enough to stop."""

    accuracy: float = Field(gt=0, le=1, description="share of the test samples that are classified correctly")


class Stop(Block):
    """When the run ends: at whatever comes first."""

    rounds: Count | None = Field(default=None, description="number of rounds")
    sim_time_s: Duration | None = Field(default=None, description="simulated seconds")
    target: Target | None = Field(default=None, description="the result to reach")

    @model_validator(mode="after")
    def _some(self) -> Stop:
        if self.rounds is None and self.sim_time_s is None and self.target is None:
            raise ValueError("give at least one of rounds, sim_time_s and target")
        return self
