"""The JSON schemas of the files that users write."""

from __future__ import annotations

from typing import Any

from fedsim.errors import ConfigError, Problem
from fedsim.spec.schema import DRAFT, experiment
from fedsim.study.content import Study


def schema(kind: str = "experiment") -> dict[str, Any]:
    """Return the JSON schema of a kind of file, with the parameters of all installed parts.

    Args:
        kind: ``"experiment"`` or ``"study"``.

    Raises:
        ConfigError: for another kind.

    >>> sorted(schema("study")["properties"])  # doctest: +NORMALIZE_WHITESPACE
    ['base', 'claimed', 'claims', 'compare', 'map', 'methods', 'name', 'set', 'text', 'title', 'tune', 'tune_by',
     'tune_each', 'tune_seed', 'vary', 'worlds']
    """
    makers = {"experiment": experiment, "study": study}
    if kind not in makers:
        raise ConfigError([Problem("schema", kind, "must be experiment or study")])
    return makers[kind]()


def study() -> dict[str, Any]:
    """Return the JSON schema of a study file, with that of the experiment in it.

    >>> study()["properties"]["base"]["anyOf"][1]
    {'$ref': '#/$defs/Experiment'}
    """
    whole, inner = Study.model_json_schema(), experiment()
    known = inner.pop("$defs")
    known |= {
        "Experiment": {**inner, "required": []},
        **whole.get("$defs", {}),
    }  # methods may add what it lacks
    del known["Experiment"]["$schema"]
    whole["properties"]["base"]["anyOf"][1] = {"$ref": "#/$defs/Experiment"}
    whole["required"] = ["base"]
    return {"$schema": DRAFT, **whole, "$defs": known}
