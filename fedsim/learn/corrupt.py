"""What a faulty or hostile node sends instead of its vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.errors import NotFiniteError
from fedsim.learn.deferred import Deferred, Inputs
from fedsim.learn.finite import is_finite
from fedsim.learn.learner import Place
from fedsim.rng import stream


@dataclass(frozen=True)
class Corrupt:
    """The corruption of a vector, as a call.

    Args:
        kind: ``nan``, ``sign_flip``, ``noise``, ``zeros`` or ``scale``.
        scale: the factor, or the noise's standard deviation.
        seed: names the noise's stream, together with the purpose and the place.
        checked: whether a value that is not finite stops the run.
        place: where and when the vector is sent; errors name it.
        name: the vector's name, so that those that one node sends together get different noise.
    """

    kind: str
    scale: float
    seed: int
    checked: bool
    place: Place
    name: str
    batch: None = None

    def named_by(self) -> object:
        """Name what the result depends on: only noise is another one elsewhere, and at another time."""
        drawn = (self.seed, self.name, self.place.node, self.place.round, self.place.sim_time_s)
        return self.kind, self.scale, drawn if self.kind == "noise" else ()

    def run(self, calls: Sequence[Corrupt], inputs: Sequence[Inputs]) -> Sequence[Tensor]:
        """Corrupt the vectors [P]."""
        return [call._one(given["of"]) for call, given in zip(calls, inputs, strict=True)]

    def _one(self, vector: Tensor) -> Tensor:
        if self.kind == "nan":
            result = torch.full_like(vector, torch.nan)
        elif self.kind == "noise":
            result = vector + self._noise(vector)
        else:
            result = vector * {"sign_flip": -1.0, "zeros": 0.0, "scale": self.scale}[self.kind]
        if self.checked and not is_finite(result):
            place, reason = self.place, f"NaN or infinity in {self.name}, which a fault has corrupted"
            raise NotFiniteError(reason, place.node, place.round, place.sim_time_s, "corrupt")
        return result

    def _noise(self, vector: Tensor) -> Tensor:
        purpose = f"corrupt {self.name} {self.place.sim_time_s!r}"
        rng = stream(self.seed, purpose, self.place.node, self.place.round)
        noise = torch.from_numpy(rng.normal(0.0, self.scale, vector.numel()))
        return noise.to(vector.device, vector.dtype).reshape(vector.shape)


def corrupted(
    vector: Deferred, how: Iterable[tuple[str, float, int, bool]], place: Place, name: str = "model"
) -> Deferred:
    """Return what is sent instead of a vector [P].

    Args:
        vector: what should be sent.
        how: kind, scale, seed and checked of every corruption, as :class:`Corrupt` takes them.
        place: where and when it is sent.
        name: the vector's name.

    >>> place = Place(node=3, round=1, sim_time_s=2.5)
    >>> flip = ("sign_flip", 1.0, 0, True)
    >>> corrupted(Deferred.known(torch.tensor([1.0, -2.0])), [flip], place).value()
    tensor([-1.,  2.])
    """
    for one in how:
        vector = Deferred(Corrupt(*one, place, name), {"of": vector})
    return vector
