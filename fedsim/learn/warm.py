"""Models that start from weights in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedsim.errors import BadValue, few

KEY = "weights"
LOOSE = "strict: false takes those that fit"
NESTED = "state_dict"
"""Where many a file has its state dict beside other things."""


def started(module: nn.Module, file: Path, strict: bool) -> str:
    """Give a model the weights in a file, and return what it took where that is not all.

    Args:
        module: the model.
        file: a safetensors file, such as one that a run has left, or a state dict that ``torch.save`` has written.
        strict: whether the file must have exactly the model's entries.

    Raises:
        BadValue: if there is no such file, it holds something else, or its entries do not fit the model.
    """
    found, own = entries(file), module.state_dict(keep_vars=True)
    own = {name: one for name, one in own.items() if isinstance(one, Tensor)}
    fits = {name: one for name, one in found.items() if name in own and one.shape == own[name].shape}
    wrong = [
        f"{name} {list(found[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in found and name not in fits
    ]
    lacks = {
        "missing": [name for name in own if name not in found],
        "unexpected": [name for name in found if name not in own],
        "of another shape": wrong,
    }
    said = "; ".join(f"{what}: {few(names)}" for what, names in lacks.items() if names)
    if said and (strict or not fits):
        hint = LOOSE if fits else ""
        raise BadValue(KEY, str(file), f"does not fit the model: {said}".replace("'", ""), hint)
    module.load_state_dict(fits, strict=False)
    if not said:
        return ""
    return f"the model has taken {len(fits)} of {len(own)} entries of {file.name}; {said}".replace("'", "")


def entries(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name; of what a run has left, those of its model.

    Raises:
        BadValue: if there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise BadValue(
            KEY, str(file), "there is no such file", "name a .safetensors or .pt file, or a run's folder"
        )
    try:
        found = _safetensors(file) if file.suffix == ".safetensors" else _state_dict(file)
    except (OSError, SafetensorError) as error:
        raise BadValue(KEY, str(file), f"cannot be read ({error})") from error
    if not found:
        raise BadValue(KEY, str(file), "has no weights in it")
    return found


def _safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as data:
        parameters = json.loads((data.metadata() or {}).get("parameters", "null"))
        names = parameters if isinstance(parameters, list) else list(data.keys())
        return {name: data.get_tensor(name) for name in names}


def _state_dict(file: Path) -> dict[str, Tensor]:
    try:
        held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle has many ways to fail, and the library tells of them in many lines
        said = next(iter(str(error).splitlines()), type(error).__name__)
        rule = f"is no state dict that can be read without running code ({said})"
        raise BadValue(KEY, str(file), rule, "save it with torch.save(model.state_dict(), PATH)") from error
    if isinstance(held, dict) and isinstance(held.get(NESTED), dict):
        held = held[NESTED]
    if not isinstance(held, dict) or not all(isinstance(one, Tensor) for one in held.values()):
        what = type(held).__name__
        rule = f"must hold a state dict, tensors by name, and holds a {what}"
        raise BadValue(KEY, str(file), rule, "save it with torch.save(model.state_dict(), PATH)")
    return held
