"""What a model draws: torch's generators, seeded for as long as one computation takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch draw from a seed of its own on the CPU and on a device, and go on afterwards where it was before.

    Args:
        seed: at least 0 and less than 2^63, drawn from a :func:`fedsim.rng.stream`.
        device: where the computation takes place.

    >>> def draw():
    ...     with seeded(7, torch.device("cpu")):
    ...         return torch.rand(3)
    >>> before = torch.get_rng_state()
    >>> torch.equal(draw(), draw()), torch.equal(torch.get_rng_state(), before)
    (True, True)
    """
    on_card = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_card else []):
        torch.default_generator.manual_seed(seed)
        if on_card:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators on the CPU and on a device."""
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if device.type == "cuda" else found
