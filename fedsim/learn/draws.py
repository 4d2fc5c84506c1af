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
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards, device_type="cuda"), _apples(device):
        torch.default_generator.manual_seed(seed)
        if cards:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


@contextmanager
def _apples(device: torch.device) -> Iterator[None]:
    """Let the generator of Apple's card go on afterwards where it was before."""
    if device.type != "mps":
        yield
        return
    before = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(before)


def states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators on the CPU and on a device."""
    found = [torch.get_rng_state()]
    if device.type == "mps":
        return [*found, torch.mps.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if device.type == "cuda" else found
