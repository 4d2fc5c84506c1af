"""Where FedAMD's server keeps one vector for each client: on the compute device, or in a file."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fedsim.learn.deferred import Deferred, Inputs, combine, compute

BLOCK = 256
"""How many vectors one file holds; files are sparse, so that those not yet written take no room."""


class Caches(Mapping[int, Deferred]):
    """Vectors [P] by client."""

    @abstractmethod
    def keep(self, new: Mapping[int, Deferred], reader: Deferred) -> None:
        """Replace the vectors of some clients.

        Args:
            new: vectors [P] by client.
            reader: what still reads the vectors that are replaced.
        """

    @abstractmethod
    def total(self) -> Deferred:
        """Return the sum of all vectors [P], in the order of the clients' ids."""


class Held(Caches):
    """Vectors that stay where they were computed.

    >>> held = Held()
    >>> held.keep({4: Deferred.known(torch.ones(2))}, Deferred.phantom())
    >>> list(held), held[4].value()
    ([4], tensor([1., 1.]))
    """

    def __init__(self) -> None:
        self._vectors: dict[int, Deferred] = {}

    def __getitem__(self, node: int) -> Deferred:
        return self._vectors[node]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._vectors))

    def __len__(self) -> int:
        return len(self._vectors)

    def keep(self, new: Mapping[int, Deferred], reader: Deferred) -> None:
        """Replace them; nothing is computed."""
        self._vectors.update(new)

    def total(self) -> Deferred:
        """Add them up when that is needed."""
        return combine([self[node] for node in self], [1.0] * len(self))


class Spilled(Caches):
    """Vectors in memory-mapped temporary files, bit for bit; the system removes the files when the process ends.

    The files are in the folder that the environment variable ``TMPDIR`` names. What is written has to be computed
    first: so all of a round's vectors are computed at its end. Those of a timing-only run do not exist, and are not
    written.

    >>> spilled, vector = Spilled(), Deferred.known(torch.tensor([0.1, -2.0]))
    >>> spilled.keep({7: vector, 3: vector}, vector)
    >>> list(spilled), spilled[7].value(), spilled.total().value()
    ([3, 7], tensor([ 0.1000, -2.0000]), tensor([ 0.2000, -4.0000]))
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._blocks: list[np.ndarray] = []
        self._vectors: dict[int, Deferred] = {}
        self._device = torch.device("cpu")

    def __getitem__(self, node: int) -> Deferred:
        held = self._vectors[node]
        return held.moved(held.value().clone().to(self._device)) if held.done else held

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._vectors))

    def __len__(self) -> int:
        return len(self._vectors)

    def keep(self, new: Mapping[int, Deferred], reader: Deferred) -> None:
        """Compute them all together, with what reads the old ones, and write them."""
        if not reader.is_phantom:
            compute([*new.values(), reader])
        for node, vector in new.items():
            if vector.done:
                self._device = vector.value().device
                row = self._row(self._rows.setdefault(node, len(self._rows)), vector.value())
                row[:] = vector.value().numpy(force=True)
                vector = vector.moved(torch.from_numpy(row))
            self._vectors[node] = vector

    def total(self) -> Deferred:
        """Add them up one by one, so that they are never all in memory."""
        vectors = [self._vectors[node] for node in self]
        if vectors[0].is_phantom:
            return vectors[0]
        total = Deferred(Total(self._device), {f"{place}": vector for place, vector in enumerate(vectors)})
        compute([total])
        return total

    def _row(self, row: int, like: torch.Tensor) -> np.ndarray:
        if row // BLOCK == len(self._blocks):
            with tempfile.TemporaryFile(prefix="fedsim-caches-") as file:
                dtype = like.numpy(force=True).dtype
                self._blocks.append(np.memmap(file, dtype, "w+", shape=(BLOCK, len(like))))
        place: np.ndarray = self._blocks[row // BLOCK][row % BLOCK]
        return place


class Total:
    """The sum of vectors that are not all in memory, as a call.

    Args:
        device: where it is added up.
    """

    batch = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def named_by(self) -> object:
        """Nothing counts but the vectors: no device is known where all of them are gone."""
        return ()

    def run(self, calls: Sequence[Total], inputs: Sequence[Inputs]) -> Sequence[torch.Tensor]:
        """Add the vectors [P] up, one after the other."""
        return [call._one(given) for call, given in zip(calls, inputs, strict=True)]

    def _one(self, given: Inputs) -> torch.Tensor:
        first, *others = given.values()
        total: torch.Tensor = first.clone().to(self.device)
        for vector in others:
            total.add_(vector.to(self.device))
        return total
