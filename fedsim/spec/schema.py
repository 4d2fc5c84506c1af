"""The JSON schema of experiment files, for editors that complete and check what is typed."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from fedsim import parts
from fedsim.spec import about
from fedsim.spec.experiment import Experiment
from fedsim.spec.reference import made

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that editors know best."""

PLACES = {
    ("", "loss"): "losses",
    ("", "topology"): "topologies",
    ("", "churn"): "churn",
    ("", "faults"): "faults",
    ("Data", "partition"): "partitions",
    ("Data", "faults"): "data_faults",
    ("Strategy", "select"): "selectors",
    ("Strategy", "around"): "transforms",
    ("Evaluate", "metrics"): "metrics",
    ("Local", "optimizer"): "optimisers",
    ("Local", "schedule"): "schedules",
    ("Local", "augment"): "augmentations",
}
"""The kind of part that stands at a key of a block."""

OPEN = {"Data": "datasets", "Strategy": "strategies", "Model": "models", "Tracker": "trackers"}
"""Blocks with keys of their own that also hold the parameters of the part that they name."""

DOTTED = {"type": "string", "pattern": "[.:]"}
"""The path of somebody's own part."""


def experiment() -> Schema:
    """Return the JSON schema of an experiment file, with the parameters of all installed parts.

    >>> ring = {"const": "ring"}
    >>> any(one.get("properties", {}).get("name") == ring for one in experiment()["$defs"]["topologies"]["anyOf"])
    True
    """
    whole = Experiment.model_json_schema()
    known: dict[str, Schema] = whole["$defs"]
    for (block, key), kind in PLACES.items():
        place = known[block] if block else whole
        place["properties"][key] = _pointed(place["properties"][key], kind)
        known.setdefault(kind, {"anyOf": _forms(kind, known, {})})
    for block, kind in OPEN.items():
        own = known[block]
        shared = {key: value for key, value in own["properties"].items() if key != "name"}
        known[block] = {"anyOf": _forms(kind, known, shared, own.get("required", []))}
    known["Constant"] = {"anyOf": [{"type": "number", "minimum": 0}, known["Constant"]]}
    whole["required"] = [key for key in whole["required"] if key != "name"]  # the file's own name will do
    whole["properties"]["strategy"] = {"$ref": "#/$defs/Strategy"}
    known["Part"] = {"anyOf": [{"type": "string"}, known["Part"]]}
    return {"$schema": DRAFT, **whole}


def _pointed(schema: Any, kind: str) -> Any:
    """Replace every mention of a part in a schema by one of a certain kind."""
    if isinstance(schema, list):
        return [_pointed(one, kind) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("$ref") == "#/$defs/Part":
        return {**schema, "$ref": f"#/$defs/{kind}"}
    return {key: _pointed(value, kind) for key, value in schema.items()}


def _forms(
    kind: str, known: dict[str, Schema], shared: Schema, required: list[str] | None = None
) -> list[Schema]:
    """Return the ways to write a part: its name alone where no parameter is required, or a block.

    Args:
        kind: of the part.
        known: definitions by name; those that parameters need are added.
        shared: keys that the block has whatever part it names.
        required: those of them that it must have, and ``name``.
    """
    must = [key for key in required or [] if key != "name"]
    blocks = [_block(kind, name, known, shared, must) for name in parts.names(kind)]
    bare = [one["properties"]["name"]["const"] for one in blocks if one["required"] == ["name"]]
    own = {"type": "object", "properties": {"name": DOTTED, **shared}, "required": ["name", *must]}
    if kind in ("datasets", "models"):  # digits is the default, and mlp
        bare, own["required"] = [] if must else bare, must
        blocks.append({**own, "properties": shared, "additionalProperties": False})
    texts = [{"enum": bare}] if bare else []
    return [*texts, *([] if must else [DOTTED]), *blocks, own]


def _block(kind: str, name: str, known: dict[str, Schema], shared: Schema, must: list[str]) -> Schema:
    """Return the schema of a block that names an installed part."""
    given = {one.name: one for one in about.parameters(kind, name)}
    part = made(kind, name)
    hints = parts.hints(part)
    own = {
        key: {**_value(hints.get(key, Any), known), "description": one.meaning or one.what}
        for key, one in given.items()
    }
    required = [key for key, one in given.items() if one.default == about.REQUIRED and key not in shared]
    return {
        "type": "object",
        "description": parts.summary(kind, name),
        "properties": {"name": {"const": name}, **own, **shared},
        "required": ["name", *must, *required],
        "additionalProperties": parts.is_open(part),
    }


def _value(annotation: Any, known: dict[str, Schema]) -> Schema:
    """Return the schema of a parameter; that of one which has none allows everything."""
    try:
        model = create_model("Value", value=(annotation, Field())).model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return {}
    for name, schema in model.get("$defs", {}).items():
        known.setdefault(name, schema)
    found: Schema = model["properties"]["value"]
    return {key: value for key, value in found.items() if key not in ("title", "default")}
