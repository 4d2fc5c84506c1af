"""An accelerator that is none: torch's meta device, as strict as a real one about where tensors are.

On the meta device tensors have shapes and no numbers. What is done to tensors of two devices at once is refused here as
a real accelerator would refuse it, and also where the meta device itself would not look. What is read from the card
(``float(x)``, ``bool(x)``, ``x.cpu()``) is made up, and counted: each such look makes a real card stand still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = ("aten._to_copy", "aten.copy_", "aten._local_scalar_dense")
QUESTIONS = ("aten.allclose", "aten.equal", "aten.is_nonzero")


class MixedDevices(AssertionError):
    """Something was done to tensors of two devices at once."""


class Card(TorchDispatchMode):
    """Plays an accelerator for what runs inside; the device is ``meta``.

    Args:
        doubles: whether it can compute in float64, as Apple's cannot.

    Attributes:
        looks: how often something was read from the card, by operation.
        work: how many operations it was asked to do.
    """

    def __init__(self, doubles: bool = True) -> None:
        super().__init__()
        self.doubles, self.looks, self.work = doubles, Counter[str](), 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at where the tensors are, and do the operation."""
        name, kwargs = str(func).rpartition(".")[0], dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [one for one in tensors if one.device.type == "meta"]
        self.work += bool(there)
        if there and name not in COPIES:
            aside = [one for one in tensors if one.device.type != "meta" and one.dim() > 0]
            if aside:
                raise MixedDevices(f"{func} of tensors on the card and {tuple(aside[0].shape)} on the host")
        if there and name == "aten._local_scalar_dense":
            self.looks[name] += 1
            return {torch.bool: True}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else 0)
        if there and name in QUESTIONS:
            self.looks[name] += 1
            return True
        if there and self._leaves(name, args, kwargs):
            self.looks[name] += 1
            return self._made_up(name, args, kwargs)
        result = func(*args, **kwargs)
        if not self.doubles and any(
            one.device.type == "meta" and one.dtype == torch.float64
            for one in tree_leaves(result)
            if isinstance(one, Tensor)
        ):
            raise TypeError(f"{func}: the card has no float64")
        return result

    def _leaves(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Tell whether numbers are brought from the card to the host."""
        if name == "aten._to_copy":
            return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        return name == "aten.copy_" and args[0].device.type == "cpu"

    def _made_up(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
        if name == "aten.copy_":
            return args[0].zero_()
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
