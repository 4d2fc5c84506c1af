"""The model, and what it starts from, as a block of the experiment file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedsim.spec.blocks import Part

WEIGHTS = "weights.safetensors"
"""The file of a run's folder that holds its model."""


class Model(Part):
    """The model; other keys are its own parameters.

    >>> Model.model_validate("mlp").weights is None
    True
    """

    name: str = Field(default="mlp", description="the model, by an entry point's name or a dotted path")
    weights: str | None = Field(
        default=None,
        description="what it starts from instead of drawn weights: a .safetensors file, a run's folder, or a .pt file "
        "with a state dict, from the folder of this file or from the current folder",
    )
    strict: bool = Field(
        default=True,
        description="whether weights must have exactly the model's entries; false takes those that fit",
    )

    @model_serializer(mode="wrap")
    def _written(self, write_block: SerializerFunctionWrapHandler) -> Any:
        own = {"weights", "strict"} if self.weights is None else set()
        block = {key: value for key, value in sorted(write_block(self).items()) if key not in own}
        return block if len(block) > 1 else self.name

    def file(self, folder: Path | None) -> Path | None:
        """Return the file with the weights, whether or not it is there; None if there are none.

        Args:
            folder: that of the experiment file, from which the path counts; from the current folder otherwise.
        """
        if self.weights is None:
            return None
        beside = (folder or Path()) / self.weights
        path = beside if beside.exists() else Path(self.weights)
        return path / WEIGHTS if path.is_dir() else path

    def told(self, folder: Path | None) -> dict[str, Any]:
        """Return what is to be said of the model by its content: of weights not where they are, but their SHA-256."""
        file = self.file(folder)
        if file is None or not file.is_file():
            return {}
        with open(file, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        return {"model": {**self.model_dump(), "weights": digest}}

    def settled(self, folder: Path | None) -> Model:
        """Return the same model for a file in another folder."""
        file = self.file(folder)
        return self if file is None else self.model_copy(update={"weights": str(file.absolute())})
