"""From the metrics that an experiment names to functions of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.losses import Loss
from fedsim.learn.metrics import accuracy
from fedsim.parts import bind, find, parameters
from fedsim.spec.blocks import Part

Metric = Callable[[Tensor, Tensor], float]
"""From outputs [N, …] and targets [N, …] to a number."""


def metrics_of(blocks: Sequence[Part], loss: Loss) -> dict[str, Metric]:
    """Return metrics by name.

    Args:
        blocks: names or dotted paths, with parameters; those of one name have their parameters in it, ``top_k_3``.
        loss: its label of padding is theirs, too.

    Raises:
        BadValue: for one that is unknown, refuses a parameter, or has a name twice; the key says which. Where there
            are classes, accuracy is the share of right ones, and no other function may go by that name.
    """
    found: dict[str, Metric] = {}
    plain = [_name(block) for block in blocks]
    for index, block in enumerate(blocks):
        try:
            part = find("metrics", block.name)
            params = dict(block.params)
            if loss.ignored is not None and "ignore_index" in parameters(part):
                params.setdefault("ignore_index", loss.ignored)
            name = plain[index]
            if plain.count(name) > 1:  # as top_k with several k: they are told apart by their parameters
                name = "_".join(map(str, (name, *block.params.values())))
            if name in ("loss", *found) or (name == "accuracy" and loss.classifies and part is not accuracy):
                rule = f"there is a metric called {name} already"
                hint = "" if name in found else "call it from a function of another name"
                raise BadValue("name", block.name, rule, hint)
            first, second, *_ = [*parameters(part), "", ""]
            found[name] = _Bound(bind(part, params, (first, second)), first, second)
        except BadValue as error:
            raise BadValue(f"metrics.{index}.{error.key}", error.value, error.rule, error.hint) from error
    return found


def _name(block: Part) -> str:
    return block.name.rpartition(":")[2].rpartition(".")[2]


class _Bound:
    """A metric whose first two parameters are outputs and targets, whatever they are called."""

    def __init__(self, function: Callable[..., float], first: str, second: str) -> None:
        self.function, self.first, self.second = function, first, second

    def __call__(self, outputs: Tensor, y: Tensor) -> float:
        return float(self.function(**{self.first: outputs, self.second: y}))
