"""Mistakes in an experiment file, in plain words and with their place in the file."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim.errors import MISSING, BadValue, Problem, did_you_mean
from fedsim.rules import REQUIRED, UNKNOWN, hint, rule
from fedsim.spec.yamlfile import Document, Steps, dotted, steps

Model = type[BaseModel]


def explain(model: Model, document: Document, errors: ValidationError) -> list[Problem]:
    """Turn all that pydantic refused into problems, in the order of the file's lines.

    Args:
        model: the model of the whole document.
        document: what was validated.
        errors: what pydantic raised.

    Returns:
        One problem for each mistake; a misspelt key is one mistake, not an unknown and a missing key.
    """
    found: dict[Steps, Problem] = {}
    for error in errors.errors():
        path, *words = _words(model, document, error)
        found.setdefault(path, _problem(document, path, *words))
    return [found[path] for path in sorted(found, key=document.line)]


def locate(model: Model, document: Document, block: Steps, error: BadValue) -> Problem:
    """Say where in the file the value is that a part refused.

    Args:
        model: the model of the whole document.
        document: the file.
        block: the steps to the part's block.
        error: what the part raised; its key is relative to the block.

    Returns:
        The problem with its full key; a key of the block that is not the part's own is a suggestion, too.
    """
    path, advice = (*block, *steps(str(error.key))), error.hint
    if path and error.rule == UNKNOWN and not advice.startswith("did you mean"):
        advice = _near(path[-1], known(model, path[:-1])) or advice
    return _problem(document, path, error.value, error.rule, advice)


def known(model: Model, loc: Steps) -> list[str]:
    """Return the keys that the block at ``loc`` may have, without the parameters of parts.

    >>> from fedsim.spec.experiment import Experiment
    >>> known(Experiment, ("network", "latency_ms", "<uniform>"))
    ['distribution', 'high', 'low']
    """
    models = [model]
    for step in loc:
        if _is_tag(step):
            models = [model for model in models if f"<{model.__name__.lower()}>" == step]
        elif isinstance(step, str):
            fields = [model.model_fields[step] for model in models if step in model.model_fields]
            models = [inner for field in fields for inner in _inside(field.annotation)]
    return sorted({key for model in models for key in model.model_fields})


def _inside(annotation: Any) -> Iterator[Model]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _inside(inner)


def _words(model: Model, document: Document, error: Mapping[str, Any]) -> tuple[Steps, Any, str, str]:
    """Return path, value, rule and hint of one of pydantic's errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path: Steps = tuple(step for step in error["loc"] if not _is_tag(step))
    words = rule(error)
    cause = context.get("error")
    if isinstance(cause, BadValue):
        return (*path, *steps(cause.key)), cause.value, cause.rule, cause.hint
    if kind.startswith("union_tag"):
        value = value.get("distribution", MISSING)
        return (*path, "distribution"), value, words, _near(value, _quoted(context.get("expected_tags", "")))
    if kind == "literal_error":
        return path, value, words, _near(value, _quoted(context["expected"]))
    if kind == "model_type" and context["class_name"] in ("Part", "Model"):
        return path, value, "must be a name or a block with a name", ""
    if kind == "missing":
        return _missing(document, path, known(model, error["loc"][:-1]))
    if kind == "extra_forbidden":
        return path, MISSING, words, did_you_mean(str(path[-1]), known(model, error["loc"][:-1]))
    return path, value, words, hint(error)


def _missing(document: Document, path: Steps, options: list[str]) -> tuple[Steps, Any, str, str]:
    block = _at(document.data, path[:-1])
    others = [key for key in block if key not in options] if isinstance(block, dict) else []
    meant = f"did you mean {path[-1]}?"
    for other in others:
        if did_you_mean(other, options) == meant:
            return (*path[:-1], other), MISSING, UNKNOWN, meant
    return path, MISSING, REQUIRED, ""


def _problem(document: Document, path: Steps, value: Any, words: str, advice: str) -> Problem:
    if path and path[-1] in ("name", "value") and not isinstance(_at(document.data, path[:-1]), dict):
        path = path[:-1]  # written as just the name or just the number
    return Problem(dotted(path), value, words, advice, document.source(path))


def _at(data: Any, path: Steps) -> Any:
    try:
        for step in path:
            data = data[step]
    except (LookupError, TypeError):
        return MISSING
    return data


def _is_tag(step: str | int) -> bool:
    """Tell whether pydantic put the step there to name the variant of a union, as in ``<uniform>``."""
    return isinstance(step, str) and re.fullmatch("<[a-z]+>", step) is not None


def _quoted(text: str) -> list[str]:
    return re.findall(r"'<?([^'>]*)>?'", text)


def _near(word: Any, options: Iterable[str]) -> str:
    hint = did_you_mean(str(word), options)
    return hint if hint.startswith("did you mean") else ""
