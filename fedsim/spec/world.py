"""The blocks of an experiment file that describe the simulated world: the network and the devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from fedsim.errors import MISSING, BadValue
from fedsim.ranges import Count, NonNegative, Positive, Seconds, Whole
from fedsim.spec.blocks import Block, Constant, Draw, PositiveDraw

EXTRAS = ("joules_per_sample", "joules_per_byte", "memory_mb")
"""What devices may have besides their speed."""


Site = Annotated[
    Annotated[Whole, Tag("<row>")] | Annotated[Literal["best"], Tag("<best>")],
    Discriminator(lambda given: "<best>" if isinstance(given, str) else "<row>"),
]


class Server(Block):
    """How the server is attached to the network."""

    latency_ms: NonNegative = Field(default=0.0, description="latency added at the server in milliseconds")
    up_mbps: Positive | None = Field(
        default=None, description="upload of the server in Mbit/s; null is unlimited"
    )
    down_mbps: Positive | None = Field(
        default=None, description="download of the server in Mbit/s; null is unlimited"
    )
    site: Site | None = Field(
        default=None,
        description="row of latency_matrix at which the server stands, or best, which has the smallest median delay "
        "there and back; null is its own number, like a node's",
    )


Servers = Annotated[
    Annotated[Count, Tag("<count>")] | Annotated[list[Server], Tag("<list>")],
    Discriminator(lambda given: "<list>" if isinstance(given, list | tuple) else "<count>"),
]
Assign = Annotated[
    Annotated[Literal["nearest", "random"], Tag("<rule>")] | Annotated[list[Whole], Tag("<list>")],
    Discriminator(lambda given: "<list>" if isinstance(given, list | tuple) else "<rule>"),
]


class Network(Block):
    """Links and nodes of the network."""

    latency_ms: Draw = Field(
        default=Constant(value=0), description="one-way latency of each link in milliseconds"
    )
    latency_matrix: str | None = Field(
        default=None,
        description="file of delays between sites instead, no header, separated by commas, tabs or spaces; "
        "a negative entry is missing: the opposite direction's or else the median stands in for it, on the diagonal 0; "
        "node i stands at site i mod sites",
    )
    latency_unit: Literal["one_way", "round_trip"] | None = Field(
        default=None,
        description="what an entry of latency_matrix is: one_way, the delay from row to column, or round_trip, the "
        "time there and back that a ping shows, of which half is taken; required with a matrix",
    )
    latency_in: Literal["s", "ms", "us"] = Field(
        default="ms", description="the unit of latency_matrix's entries: s, ms or us"
    )
    latency_missing: Literal["negative", "zero"] = Field(
        default="negative",
        description="which entries of latency_matrix are missing: negative ones, or zero as well, between two sites",
    )
    overlay: bool = Field(
        default=False,
        description="whether the topology only says who talks to whom, and messages go straight to their receiver",
    )
    node_latency_ms: Draw = Field(
        default=Constant(value=0), description="latency added at each client or peer in milliseconds"
    )
    up_mbps: PositiveDraw | None = Field(
        default=None,
        description="upload of each client or peer in Mbit/s; null is what devices.trace records, or unlimited",
    )
    down_mbps: PositiveDraw | None = Field(
        default=None,
        description="download of each client or peer in Mbit/s; null is what devices.trace records, or unlimited",
    )
    edge_mbps: PositiveDraw | None = Field(
        default=None, description="capacity of each link in Mbit/s; null is unlimited"
    )
    sharing: Literal["max-min", "greedy", "none"] = Field(
        default="max-min", description="how transfers that cross one link share it: max-min, greedy or none"
    )
    header_bytes: Whole = Field(default=64, description="bytes that each message has besides its content")
    server: Server = Field(default_factory=Server, description="how the server is attached, if there is one")
    servers: Servers = Field(
        default=1,
        description="how many servers there are, each attached as server says, or a list with how each of them is; "
        "several are for strategies that have several, such as multi_server",
    )
    assign: Assign = Field(
        default="nearest",
        description="the server of each client, where there are several: nearest, by the latency from the server, of "
        "equally near ones that over the fewest links, of those that with the fewest clients so far; random, as many "
        "to each; or a list of their numbers",
    )
    detect_s: Seconds = Field(
        default=10.0, description="seconds until the server notices that a node went offline"
    )

    @field_validator("latency_matrix")
    @classmethod
    def _one_source(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and info.data.get("latency_ms") != Constant(value=0):
            raise ValueError("give either latency_ms or latency_matrix, not both")
        return path

    @property
    def attached(self) -> list[Server]:
        """How each server is attached, whether or not the strategy has any."""
        return [self.server] * self.servers if isinstance(self.servers, int) else self.servers

    @model_validator(mode="after")
    def _whose_clients(self) -> Network:
        if not self.attached:
            raise BadValue("servers", [], "must name at least one server")
        if not isinstance(self.servers, int) and self.server != Server():
            raise BadValue("server", MISSING, "is for all servers, and network.servers says it of each")
        if self.server.site is not None and len(self.attached) > 1:
            rule = f"puts all {len(self.attached)} servers at one site"
            raise BadValue(
                "server.site", self.server.site, rule, "give a list: servers: [{site: 3}, {site: 8}]"
            )
        if self.assign != "nearest" and len(self.attached) == 1:
            raise BadValue("assign", self.assign, "says which server a client has, and there is one")
        return self

    @model_validator(mode="after")
    def _whose_time(self) -> Network:
        if self.latency_matrix is not None and self.latency_unit is None:
            rule = "is required with latency_matrix: one_way if an entry is the delay in one direction"
            raise BadValue(
                "latency_unit", MISSING, f"{rule}, round_trip if it is the time there and back of a ping"
            )
        for key in ("latency_in", "latency_missing") if self.latency_matrix is None else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                rule = "says what latency_matrix holds, and there is none"
                raise BadValue(key, getattr(self, key), rule)
        if self.latency_matrix is None and self.latency_unit is not None:
            raise BadValue(
                "latency_unit", self.latency_unit, "says what latency_matrix holds, and there is none"
            )
        return self


class Extras(Block):
    """What a device may have besides its speed; nothing of it changes what happens when."""

    joules_per_sample: Draw | None = Field(
        default=None, description="energy per gradient of one sample in joules, for each node"
    )
    joules_per_byte: Draw | None = Field(
        default=None, description="energy per byte sent or received in joules, for each node"
    )
    memory_mb: PositiveDraw | None = Field(
        default=None,
        description="memory of each node in megabytes of 10^6 bytes; the weights that local training holds and one "
        "batch must fit into it; null is unlimited",
    )


class DeviceClass(Extras):
    """Devices of one kind."""

    share: float = Field(gt=0, le=1, description="the class's share of the nodes")
    seconds_per_sample: PositiveDraw = Field(description="seconds per gradient of one sample, for each node")


class Stragglers(Block):
    """The slowest nodes, made slower."""

    share: float = Field(gt=0, le=1, description="share of the nodes that are slowed down")
    factor: float = Field(ge=1, le=1_000_000, description="how many times longer everything takes them")


class Devices(Extras):
    """How fast the nodes compute, from exactly one source; and what else they have, in all classes or in none."""

    seconds_per_sample: PositiveDraw | None = Field(
        default=Constant(value=0.001), description="seconds per gradient of one sample, for each node"
    )
    classes: list[DeviceClass] | None = Field(
        default=None,
        description="instead: kinds of devices, each with its share and seconds_per_sample; energy and memory that a "
        "class does not name are those of all devices",
    )
    trace: str | None = Field(
        default=None,
        description="instead: a capacity trace; node i is the row i modulo the number of rows, bandwidths included",
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
    def _all_classes(self) -> Devices:
        for key in EXTRAS:
            named = [getattr(one, key) is not None for one in self.classes or ()]
            if getattr(self, key) is None and any(named) and not all(named):
                rule = f"has no {key}, and class {named.index(True)} has one"
                hint = f"give it to every class, or say devices.{key} for the others"
                raise BadValue(f"classes.{named.index(False)}", MISSING, rule, hint)
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Devices:
        sources = ("seconds_per_sample", "classes", "trace")
        named = [source for source in sources if getattr(self, source) is not None]
        if len(named) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(sources)}, not {' and '.join(named) or 'none of them'}"
            )
        return self
