"""What a simulation is told of a Flower app: the block ``app`` of a world, and ``[tool.fedsim]`` of the app itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.ranges import Count
from fedsim.spec.blocks import Block

Scalar = bool | int | float | str


class App(Block):
    """What a simulation is told of a Flower app.

    >>> App(node_config={"path": ["a.csv", "b.csv"], "limit": 5}).of_node(1)
    {'path': 'b.csv', 'limit': 5}
    """

    workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        default=None,
        description="processes for the ClientApps in place of the ServerApp's, from the start; 0 is that one alone; "
        "null shares them between that one and one more for each other core, once they have run for two seconds",
    )
    samples_per_message: Count | None = Field(
        default=None,
        description="per-sample gradients that a message costs; null takes the reply's num-examples",
    )
    on_failure: Literal["drop", "stop"] = Field(
        default="drop",
        description="what a ClientApp that raises does: send an error reply, as on a SuperNode, or stop the run",
    )
    node_config: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="what clients find in their node_config besides partition-id and num-partitions: for each key a "
        "value for all, or a list with one for each",
    )

    def of_node(self, node: int) -> dict[str, Scalar]:
        """Return the configuration of one client."""
        return {
            key: value[node] if isinstance(value, list) else value for key, value in self.node_config.items()
        }
