"""The blocks of an experiment file that describe the simulated world: the network and the devices."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedsim.blocks import Block, Constant, Draw, NonNegative, Positive, PositiveDraw


class Server(Block):
    """How the server is attached to the network."""

    latency_ms: NonNegative = Field(default=0.0, description="latency added at the server in milliseconds")
    up_mbps: Positive | None = Field(
        default=None, description="upload of the server in Mbit/s; null is unlimited"
    )
    down_mbps: Positive | None = Field(
        default=None, description="download of the server in Mbit/s; null is unlimited"
    )


class Network(Block):
    """Links and nodes of the network."""

    latency_ms: Draw = Field(default=Constant(value=0), description="latency of each link in milliseconds")
    latency_matrix: str | None = Field(
        default=None,
        description="CSV file of milliseconds between sites instead; node i stands at site i mod sites",
    )
    overlay: bool = Field(
        default=False,
        description="whether the topology only says who talks to whom, and messages go straight to their receiver",
    )
    node_latency_ms: Draw = Field(
        default=Constant(value=0), description="latency added at each client or peer in milliseconds"
    )
    up_mbps: PositiveDraw | None = Field(
        default=None, description="upload of each client or peer in Mbit/s; null is unlimited"
    )
    down_mbps: PositiveDraw | None = Field(
        default=None, description="download of each client or peer in Mbit/s; null is unlimited"
    )
    edge_mbps: PositiveDraw | None = Field(
        default=None, description="capacity of each link in Mbit/s; null is unlimited"
    )
    sharing: Literal["max-min", "greedy", "none"] = Field(
        default="max-min", description="how transfers that cross one link share it: max-min, greedy or none"
    )
    header_bytes: int = Field(default=64, ge=0, description="bytes that each message has besides its content")
    server: Server = Field(default_factory=Server, description="how the server is attached, if there is one")
    detect_s: NonNegative = Field(
        default=10.0, description="seconds until the server notices that a node went offline"
    )

    @field_validator("latency_matrix")
    @classmethod
    def _one_source(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("latency_ms") != Constant(value=0):
            raise ValueError("give either latency_ms or latency_matrix, not both")
        return path


class DeviceClass(Block):
    """Devices of one kind."""

    share: float = Field(gt=0, le=1, description="the class's share of the nodes")
    seconds_per_sample: PositiveDraw = Field(description="seconds per gradient of one sample, for each node")


class Stragglers(Block):
    """The slowest nodes, made slower."""

    share: float = Field(gt=0, le=1, description="share of the nodes that are slowed down")
    factor: float = Field(ge=1, description="how many times longer everything takes them")


class Devices(Block):
    """How fast the nodes compute, from exactly one source."""

    seconds_per_sample: PositiveDraw | None = Field(
        default=Constant(value=0.001), description="seconds per gradient of one sample, for each node"
    )
    classes: list[DeviceClass] | None = Field(
        default=None, description="instead: kinds of devices, each with its share and seconds_per_sample"
    )
    trace: str | None = Field(
        default=None, description="instead: a capacity trace; node i is the row i modulo the number of rows"
    )
    stragglers: Stragglers | None = Field(default=None, description="how the slowest nodes are slowed down")

    @model_validator(mode="before")
    @classmethod
    def _instead(cls, given: Any) -> Any:
        other = isinstance(given, dict) and not (given.get("classes") is None and given.get("trace") is None)
        return {"seconds_per_sample": None, **given} if other else given

    @field_validator("classes")
    @classmethod
    def _whole(cls, classes: list[DeviceClass] | None) -> list[DeviceClass] | None:
        total = sum(one.share for one in classes or ())
        if classes is not None and abs(total - 1) > 1e-9:
            raise ValueError(f"the shares of the classes add up to {total:.9g}, must add up to 1")
        return classes

    @model_validator(mode="after")
    def _one_source(self) -> Devices:
        sources = ("seconds_per_sample", "classes", "trace")
        named = [source for source in sources if getattr(self, source) is not None]
        if len(named) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(sources)}, not {' and '.join(named) or 'none of them'}"
            )
        return self
