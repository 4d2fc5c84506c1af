"""Devices: which one a name means, and what it takes for an accelerator to give the same bits every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsim.errors import BadValue

HINT = "use auto or cpu"


def find_device(name: str, dtype: torch.dtype = torch.float32) -> torch.device:
    """Return the device with this name; ``auto`` is the first accelerator, or else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: what it has to compute in.

    Raises:
        BadValue: with the key ``device``, if it is not there, or cannot compute in that type.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        why = f"torch sees {count} of them" if count else _no_cuda()
        raise BadValue("device", name, f"there is no such device here: {why}", HINT)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadValue("device", name, "there is no such device here: it is Apple's", HINT)
    if device.type == "mps" and dtype == torch.float64:
        raise BadValue("device", name, "cannot compute in float64", "take dtype: float32, or device: cpu")
    return device


def _no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built for the CPU alone"
    return "torch finds no GPU, or no driver for it"


@contextmanager
def steady(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Let an NVIDIA card compute in float32 where float32 is asked for, and the same bits every time.

    By default convolutions are computed in TF32 there, and some sums in whatever order the threads arrive in. What
    torch can do in no other way, it warns of. On other devices nothing is changed.

    Args:
        device: where it is computed.
        tf32: whether products may be computed in TF32 after all: the same bits every time, and fewer of them.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the card is first used
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=not all((before[0], not before[1])))
    products, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
