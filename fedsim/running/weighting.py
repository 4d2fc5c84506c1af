"""How much each client counts in an average: by its samples, or all the same."""

from __future__ import annotations

from typing import Any

from fedsim.errors import BadValue
from fedsim.methods.select import Selector
from fedsim.spec.experiment import Weighting


def choose_weighting(
    name: str, weighted: bool, select: Selector | None, wanted: Weighting | None
) -> Weighting | None:
    """Return how a method is to weigh replies, as the experiment, or else the selector, says.

    Args:
        name: the method's.
        weighted: whether it has a use for numbers of samples when it merges models.
        select: what chooses the clients, or None.
        wanted: what the experiment says, or None.

    Returns:
        The weighting, or None for a method that counts all replies alike.

    Raises:
        BadValue: if replies are to count by samples where the method counts them alike, or if a selector says
            something that has no meaning.

    >>> choose_weighting("FedAvg", True, None, None), choose_weighting("FedDyn", False, None, None)
    ('samples', None)
    """
    advised: Any = "samples" if select is None else select.weighting
    if advised not in ("samples", "uniform"):
        named = type(select).__name__
        raise BadValue("select.name", named, f"has the weighting {advised!r}; it must be samples or uniform")
    if weighted:
        chosen: Weighting = wanted or advised
        return chosen
    if wanted == "samples":
        raise BadValue("weighting", wanted, f"{name} never weighs its clients by their samples")
    return None
