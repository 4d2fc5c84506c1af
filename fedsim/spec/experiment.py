"""The experiment file as frozen, typed, strict models.

:func:`load` reads a file, :meth:`Experiment.dump` writes it out with every default. A mistake is one line,
``FILE:LINE: key: value: rule; hint``, and all mistakes of a file are reported together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from fedsim import parts
from fedsim.errors import MISSING, BadValue, ConfigError, FedsimError, Problem
from fedsim.places import of_error
from fedsim.ranges import Count, Duration, NonNegative, Number, Seed, Threads, Whole
from fedsim.spec.blocks import Block, Constant, Draw, Name, OpenBlock, Part, matching
from fedsim.spec.explain import explain, locate
from fedsim.spec.local import Expert, Local
from fedsim.spec.model import Model
from fedsim.spec.objects import is_object, path_of
from fedsim.spec.record import Record
from fedsim.spec.stop import Stop
from fedsim.spec.world import Devices, Network
from fedsim.spec.yamlfile import Document, Steps, read, write

__all__ = ["Constant", "Draw", "Experiment", "Local", "Part", "load"]

Device = Annotated[str, matching(r"auto|cpu|cuda(:\d{1,3})?|mps", "must be auto, cpu, cuda, cuda:N or mps")]
DEBUG = "fedsim --debug shows the traceback"

Weighting = Literal["samples", "uniform"]
"""How replies count in an average: by their clients' numbers of samples, or all the same."""


class Data(OpenBlock):
    """The data and how they are divided; other keys are the dataset's own parameters."""

    name: str = Field(default="digits", description="the dataset")
    clients: Count = Field(description="number of clients that hold data")
    partition: Part = Field(default=Part(name="iid"), description="how samples are divided among clients")
    val_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training samples that nobody trains on: the run is evaluated on them, and the test "
        "is only looked at when it is over, as test_accuracy and test_loss; 0 evaluates on the test",
    )
    client_test_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of each client's samples that are its own test, on which it does not train: client_accuracy "
        "and client_loss are the means over the clients",
    )
    root: str | None = Field(
        default=None, description="folder of the downloaded files; None is the dataset's own choice"
    )
    faults: list[Part] = Field(default_factory=list, description="what is wrong with some clients' samples")


class Strategy(OpenBlock):
    """The algorithm; other keys are the strategy's own parameters."""

    name: str = Field(description="the strategy")
    local: Local = Field(default_factory=Local, description="local training")
    on_failure: Literal["stop", "drop"] = Field(
        default="stop",
        description="whether a client's update that fails or has NaN in it stops the run, or is dropped by the server",
    )
    timeout_s: Duration | None = Field(
        default=3600.0,
        description="how long to wait for other nodes in a round, in simulated seconds; null waits for ever",
    )
    quorum: float = Field(
        default=1.0, gt=0, le=1, description="share of the clients asked whose replies end a server's wait"
    )
    retries: Whole = Field(
        default=0, description="how often a server asks a client again whose message or reply was lost"
    )
    select: Part | None = Field(
        default=None,
        description="how a server chooses the clients of a round; null is the strategy's own way",
    )
    weighting: Weighting | None = Field(
        default=None,
        description="how models count in an average, by samples or all the same; null is what the selector says",
    )
    buffers: Literal["average", "local", "fedbn", "server"] = Field(
        default="average",
        description="whose the buffers are that training changes, such as batch statistics: sent and averaged with the "
        "model; local: each client's own, never sent, where a server's model is judged with their mean; fedbn: so, and "
        "with them scales and shifts of batch normalisation; or the server's, which nobody changes",
    )
    around: list[Part] = Field(
        default_factory=list, description="what is done to all that clients send, the first one first"
    )


class Evaluate(Block):
    """When and how models are evaluated."""

    every: Count = Field(default=1, description="rounds between two evaluations")
    batch_size: Count = Field(default=1000, description="test samples per batch")
    metrics: list[Part] = Field(
        default_factory=list,
        description="what is measured on the test data beside loss and accuracy, by name or dotted path",
    )
    personal: Whole | None = Field(
        default=None,
        description="local steps that each client takes with its model before it is measured once more on the client's "
        "own test, from data.client_test_share or from a dataset that says whose its test samples are: "
        "personal_accuracy is what it has, tuned_accuracy what it has after them, each with _mean, _worst_decile and "
        "_gini over the clients; 0 takes none, and null measures neither",
    )
    nodes: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the peers whose models are evaluated, drawn anew for every evaluation",
    )


class Assume(Block):
    """Numbers that stand in for those of training where only time is kept; any other metric may be a key, too.

    >>> Assume(loss=0.5, train_loss=0.7).numbers
    {'loss': 0.5, 'train_loss': 0.7}
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number] = Field(init=False)

    loss: NonNegative | None = Field(
        default=None,
        description="the loss of every evaluation; other metrics that are read, such as score, are keys of assume, too",
    )
    accuracy: float | None = Field(
        default=None, ge=0, le=1, description="the share that is classified correctly in every evaluation"
    )

    @property
    def numbers(self) -> dict[str, float]:
        """What is assumed, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Compute(Block):
    """How the numbers are computed."""

    engine: Part = Field(
        default=Part(name="auto"),
        description="how clients are trained: auto, an engine's name, or a dotted path",
    )
    device: Device = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["float32", "float64"] = Field(default="float32", description="type of weights and data")
    slots: Count | None = Field(
        default=None, description="clients trained in one stacked batch; null is automatic"
    )
    workers: Threads | None = Field(
        default=None,
        description="processes that share the clients' training on a CPU, at most 1024; null takes one for each core, "
        "once a run has trained for two seconds. No number depends on how many there are",
    )
    state_bytes: Whole | None = Field(
        default=None,
        description="bytes of what clients of a server keep between their visits that stay in memory; the rest is in "
        "files of the temporary folder. null is a quarter of the device's memory. No number depends on it",
    )
    patience_s: Duration | None = Field(
        default=3600.0,
        description="seconds of real time without an event or a step of training after which a run counts as hanging; "
        "null waits for ever",
    )
    threads: Threads = Field(
        default=1,
        description="threads of one operation on the CPU, at most 1024; more are often slower where cores are few or "
        "busy",
    )


class Experiment(Block):
    """A whole experiment; :func:`load` makes one.

    >>> experiment = load({"data": {"clients": 8}, "strategy": "fedavg", "stop": {"rounds": 2}})
    >>> experiment.strategy.local.batch_size, experiment.topology.name
    (32, 'star')
    >>> len(experiment.digest())
    64
    """

    name: Name = Field(
        description="the name of the run's folder; by default the file's name without its ending"
    )
    seed: Seed = Field(default=0, description="the seed of everything random")
    beside: str | None = Field(
        default=None,
        description="folder in which the modules of dotted paths are looked up, after everything installed and before "
        "the current folder; null is the folder of this file",
    )
    data: Data = Field(description="the data and how they are divided")
    model: Model = Field(default=Model(name="mlp"), description="the model")
    loss: Part | None = Field(
        default=None,
        description="what training makes small, by name or dotted path; null is the dataset's own",
    )
    expert: Expert = Field(
        default_factory=Expert,
        description="the model that says how hard samples are, where that is asked for",
    )
    strategy: Strategy = Field(description="the algorithm")
    topology: Part = Field(default=Part(name="star"), description="who is linked with whom")
    network: Network = Field(default_factory=Network, description="links and nodes of the network")
    devices: Devices = Field(default_factory=Devices, description="how fast the nodes compute")
    churn: Part = Field(default=Part(name="always"), description="when nodes are online")
    faults: list[Part] = Field(default_factory=list, description="what goes wrong")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="when and how models are evaluated")
    stop: Stop = Field(description="when the run ends")
    assume: Assume = Field(
        default_factory=Assume, description="what --timing-only takes for the numbers that nobody computes"
    )
    compute: Compute = Field(default_factory=Compute, description="how the numbers are computed")
    record: Record = Field(default_factory=Record, description="what the run leaves behind")

    _document: Document = PrivateAttr(default_factory=Document)
    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("strategy")
    @classmethod
    def _rate_for_each(cls, strategy: Strategy, info: ValidationInfo) -> Strategy:
        lr, data = strategy.local.lr, info.data.get("data")
        if isinstance(lr, list) and data is not None and len(lr) != data.clients:
            rule = f"{len(lr)} rates for {data.clients} clients; give one number or one for each client"
            raise BadValue("local.lr", lr, rule)
        return strategy

    def __eq__(self, other: object) -> bool:
        """Tell whether two experiments say the same, wherever they were written."""
        return isinstance(other, Experiment) and self.model_dump() == other.model_dump()

    def dump(self) -> str:
        """Return the experiment as YAML with every default; :func:`load` reads it back as an equal one."""
        return write(self.model_dump())

    def digest(self) -> str:
        """Return the SHA-256 of the resolved experiment as 64 hexadecimal digits."""
        given = self.model_dump(exclude={"beside"}) | self.model.told(self.home)  # by content, not by place
        text = json.dumps(given, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def home(self) -> Path | None:
        """The folder of the experiment's file, from which its paths count; None without one."""
        return self._folder

    @property
    def folder(self) -> Path | None:
        """Where modules of dotted paths are looked up before the current folder: beside the file, or where it says."""
        if self.beside is None:
            return self._folder
        return (self._folder or Path()) / self.beside

    def find(self, kind: str, name: str) -> parts.Part:
        """Return a part of this experiment by name, as :func:`fedsim.parts.find` does.

        Raises:
            BadValue: if there is no such part; the key is ``name``.
        """
        return parts.find(kind, name, self.folder)

    def problem(self, block: Steps, error: BadValue) -> ConfigError:
        """Say where in the file the value is that a part refused.

        Args:
            block: the steps to the part's block, such as ``("faults", 0)``.
            error: what the part raised; its key is relative to the block.

        Returns:
            The error to raise instead: one line with file, line and full key.

        >>> experiment = load({"data": {"clients": 5}, "strategy": "dpsgd", "stop": {"rounds": 2}})
        >>> print(experiment.problem(("topology",), BadValue("degree", 3, "5 x 3 is odd")))
        topology.degree: 3: 5 x 3 is odd
        """
        return ConfigError([locate(Experiment, self._document, block, error)])

    @contextmanager
    def blame(self, *block: str | int) -> Iterator[None]:
        """Turn a part's :class:`BadValue` into an error that names the line of the part's block.

        >>> experiment = load({"data": {"clients": 5}, "strategy": "dpsgd", "stop": {"rounds": 2}})
        >>> with experiment.blame("topology"):
        ...     raise BadValue("degree", 3, "5 x 3 is odd")
        Traceback (most recent call last):
        fedsim.errors.ConfigError: topology.degree: 3: 5 x 3 is odd
        """
        try:
            yield
        except BadValue as error:
            raise self.problem(block, error) from error
        except (FedsimError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            broken = self.broken(block, error)
            if broken is None:
                raise
            raise broken from error

    def broken(self, block: Steps, error: BaseException) -> ConfigError | None:
        """Say in one line where a part broke that should have refused something; None if the block names no part."""
        owner: Any = self
        for step in block:
            owner = owner[step] if isinstance(step, int) else getattr(owner, step)
        if not isinstance(owner, OpenBlock):
            return None
        said = next(iter(str(error).splitlines()), "")
        rule = f"breaks at {of_error(error)}: {type(error).__name__}" + (f": {said}" if said else "")
        return self.problem(block, BadValue("name", getattr(owner, "name", ""), rule, DEBUG))


def load(
    source: str | Path | Mapping[str, Any] | Document, overrides: Mapping[str, Any] | None = None
) -> Experiment:
    """Load an experiment.

    Args:
        source: a YAML file, the same content as a mapping, or a file that has been read.
        overrides: values by dotted key, which replace what the source says; text is read as YAML.

    Returns:
        The experiment, checked as far as that is possible without its parts.

    Raises:
        ConfigError: with every mistake found, one line each.

    >>> base = {"data": {"clients": 8}, "strategy": "fedavg", "stop": {"rounds": 2}}
    >>> load(base, {"strategy.local.lr": "1e-3"}).strategy.local.lr
    0.001
    >>> load({**base, "sede": 3})
    Traceback (most recent call last):
    fedsim.errors.ConfigError: sede: unknown key; did you mean seed?
    """
    folder = None
    if isinstance(source, Mapping):
        document, stem = Document(data=_plain(source)), "experiment"
    else:
        document = source if isinstance(source, Document) else read(source)
        stem, folder = Path(document.name).stem, Path(document.name).absolute().parent
    for key, value in (overrides or {}).items():
        block, _, inner = key.partition(".")
        part = Experiment.model_fields[block].default if block in Experiment.model_fields else None
        if inner and isinstance(part, Part):  # a parameter of the default part
            document.data.setdefault(block, part.name)
        document.set(key, value if isinstance(value, str) else _plain(value))
    if "base" in document.data and not {"data", "strategy"} & document.data.keys():
        hint = "fedsim sweep runs what it varies"
        raise ConfigError([Problem("", MISSING, "is a study and no experiment", hint, document.name)])
    try:
        experiment = Experiment.model_validate(
            {"name": re.sub(r"[^A-Za-z0-9_.-]+", "-", stem), **document.data}
        )
    except ValidationError as error:
        raise ConfigError(explain(Experiment, document, error)) from None
    experiment._document, experiment._folder = document, folder
    if experiment.beside is not None and not os.path.isdir(experiment.folder or ""):
        raise experiment.problem((), BadValue("beside", experiment.beside, "there is no such folder"))
    return experiment


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if is_object(value):
        return path_of(value)
    return str(value) if isinstance(value, Path) else value
