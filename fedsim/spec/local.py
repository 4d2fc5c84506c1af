"""The blocks of an experiment file that describe local training, its curriculum, and the expert."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from fedsim.ranges import Count, NonNegative, Positive, StepSize
from fedsim.spec.blocks import Block, Part

Rate = Annotated[
    Annotated[StepSize, Tag("<one>")] | Annotated[list[StepSize], Tag("<each>")],
    Discriminator(lambda given: "<each>" if isinstance(given, list) else "<one>"),
]

Family = Literal["linear", "quad", "root", "sqrt", "step", "exp", "log"]
Ordering = Literal["curriculum", "anti", "random", "vanilla"]
Score = Literal["global", "local", "both", "expert"]
Start = Annotated[float, Field(gt=0, le=1)]


class Curriculum(Block):
    """The order in which a client learns its samples, and how fast it takes more of them."""

    order: Ordering = Field(
        default="curriculum",
        description="easy samples first, hard ones first (anti), by chance, or the plain training (vanilla)",
    )
    score: Score = Field(
        default="global",
        description="which model says how hard a sample is: the one received, the client's own of its last visit, "
        "the sum of both, or the expert",
    )
    measure: Literal["loss", "error"] = Field(
        default="loss",
        description="what of a sample makes it hard: its loss, or that it is classified wrongly",
    )
    pacing: Family = Field(default="linear", description="how the number of samples grows; sqrt is root")
    a: NonNegative = Field(default=0.8, description="share of the steps after which all samples take part")
    b: Start = Field(default=0.2, description="share of the samples at the start")
    floor: Count = Field(default=32, description="the fewest samples of a pass")
    rounds: Count | None = Field(
        default=None, description="rounds over which the number grows; null lets it grow anew in every visit"
    )

    @field_validator("measure")
    @classmethod
    def _of_models(cls, measure: str, info: ValidationInfo) -> str:
        if measure == "error" and info.data.get("score") == "expert":
            raise ValueError("the expert scores by its loss alone")
        return measure

    @property
    def scored(self) -> bool:
        """Whether the order depends on scores."""
        return self.order in ("curriculum", "anti")


class Expert(Block):
    """A model trained on all clients' data at once, whose losses say how hard each sample is."""

    epochs: Count = Field(default=10, description="passes over all training samples")
    batch_size: Count = Field(default=64, description="samples per step")
    lr: Positive = Field(default=0.01, description="learning rate at the first step (no unit)")
    lr_decay: NonNegative = Field(
        default=0.001, description="d of the learning rate lr (1 + d t)^-power at step t"
    )
    lr_power: NonNegative = Field(default=0.75, description="power of that decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD (no unit)")
    weight_decay: NonNegative = Field(
        default=5e-4, description="factor of the weights added to the gradient (no unit)"
    )
    last_layer: Positive = Field(default=10.0, description="factor of the learning rate of the last layer")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing (no unit)")


class Local(Block):
    """Local training: what one client does between receiving and sending weights."""

    epochs: Count | None = Field(
        default=None, description="passes over the local data (1 if no steps are given)"
    )
    steps: Count | None = Field(default=None, description="number of minibatch steps, instead of epochs")
    batch_size: Count | None = Field(
        default=32, description="samples per step; null takes the whole local data"
    )
    lr: Rate = Field(default=0.05, description="learning rate (no unit), or a list with one for each client")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of SGD (no unit)")
    weight_decay: NonNegative = Field(
        default=0.0, description="factor of the weights added to the gradient (no unit)"
    )
    lr_decay: NonNegative = Field(
        default=0.0,
        description="d of the learning rate lr (1 + d t)^-power at local step t, afresh at each visit",
    )
    lr_power: NonNegative = Field(default=0.75, description="power of that decay")
    optimizer: Part = Field(
        default=Part(name="sgd"),
        description="what makes steps of gradients: sgd, adam, adamw (whose weight_decay shrinks the weights), "
        "rmsprop, or a dotted path; its state starts afresh at each visit",
    )
    clip_norm: Positive | None = Field(
        default=None, description="the largest norm of a step's gradient, which is shortened to it (no unit)"
    )
    schedule: Part | None = Field(
        default=None,
        description="how lr changes from round to round: constant, step, cosine, warm_up, list, or a dotted path; null "
        "leaves it as it is",
    )
    augment: list[Part] = Field(
        default_factory=list,
        description="what is done to the inputs of a batch in training, drawn from the visit's own key: crop, flip, "
        "noise, or dotted paths, the first one first",
    )
    curriculum: Curriculum | None = Field(
        default=None, description="which samples a client learns first; null takes all of them in each pass"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("epochs") is None and given.get("steps") is None:
            return {**given, "epochs": 1}
        return given

    @field_validator("optimizer")
    @classmethod
    def _own_momentum(cls, optimizer: Part, info: ValidationInfo) -> Part:
        if optimizer.name != "sgd" and info.data.get("momentum"):
            raise ValueError(f"momentum ({info.data['momentum']:g}) belongs to sgd; leave it out")
        return optimizer

    @property
    def steps_plainly(self) -> bool:
        """Whether steps are learning rate times gradient, but for momentum and weight decay."""
        return self.optimizer == Part(name="sgd") and self.clip_norm is None

    @property
    def paced(self) -> Curriculum | None:
        """The curriculum, where it changes which samples take part."""
        return None if self.curriculum is None or self.curriculum.order == "vanilla" else self.curriculum

    @field_validator("steps")
    @classmethod
    def _one_of_two(cls, steps: int | None, info: ValidationInfo) -> int | None:
        epochs = info.data.get("epochs")
        if steps is not None and epochs is not None:
            raise ValueError(f"give either epochs or steps, not both (epochs is {epochs})")
        return steps
