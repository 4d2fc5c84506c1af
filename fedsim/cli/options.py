"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreOf = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDSIM_STORE", help="Folder of what runs have computed; nothing in it is computed again."
    ),
]
StoreSize = Annotated[
    float,
    typer.Option("--store-gb", envvar="FEDSIM_STORE_GB", min=0.001, help="How much the store may hold."),
]
