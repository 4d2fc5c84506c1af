"""Flower in simulated time; the package itself is the function ``fedsim.flower.simulate(server_app, …)``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.record.result import Result


class _Simulate(ModuleType):
    """Python gives a package's name to its folder, so a function of the same name has to be the folder, too."""

    def __call__(self, *args: Any, **options: Any) -> Result:
        """Run a Flower app that consists of objects; see :func:`fedsim.flower.apps.python.simulate`."""
        made: Result = importlib.import_module("fedsim.flower.apps.python").simulate(*args, **options)
        return made


sys.modules[__name__].__class__ = _Simulate
