"""What a study may not say: settings that no experiment has, and claims about runs that it does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedsim.errors import MISSING, BadValue, ConfigError, Problem, did_you_mean
from fedsim.spec.experiment import Experiment
from fedsim.spec.explain import locate
from fedsim.spec.yamlfile import Document
from fedsim.study.asked import METHOD, WORLD, Chosen, Claim, Map, is_meant, text, wanted
from fedsim.study.content import Study


def check_keys(study: Study, document: Document) -> None:
    """Refuse settings that no experiment has, before anything runs."""
    blocks = list(Experiment.model_fields)
    groups: dict[tuple[str, ...], dict[str, Any]] = {
        ("set",): study.set,
        ("vary",): study.axes,
        ("tune",): study.tune,
    }
    groups |= {("methods", name): changes for name, changes in study.methods.items()}
    groups |= {("worlds", name): changes for name, changes in study.worlds.items()}
    for group, keys in groups.items():
        for key in keys:
            block = key.partition(".")[0]
            if block not in blocks:
                hint = did_you_mean(block, blocks)
                error = BadValue("", key, "is no key of an experiment", hint)
                raise ConfigError([locate(Study, document, group, error)])
            if group[0] not in ("vary", "tune") and (why := _differs(study, key)):
                raise ConfigError([locate(Study, document, group, BadValue("", key, f"{why}, which counts"))])
    for place, key in enumerate(study.tune_each):
        if key == "seed" or key not in groups[("vary",)]:
            error = BadValue("", key, "must be a key of vary, and not the seed")
            raise ConfigError([locate(Study, document, ("tune_each", place), error)])
    baseline = study.compare.baseline
    if (
        baseline is not None
        and study.methods
        and study.compare.by == METHOD
        and baseline not in study.methods
    ):
        hint = did_you_mean(baseline, list(study.methods))
        raise ConfigError(
            [
                locate(
                    type(study), document, ("compare",), BadValue("baseline", baseline, "is no method", hint)
                )
            ]
        )


def check_claims(study: Study, document: Document) -> None:
    """Refuse claims, and a map, about runs that the study does not have."""
    known: dict[str, list[Any]] = {METHOD: list(study.methods), WORLD: list(study.worlds)}
    known |= study.axes
    known = {key: values for key, values in known.items() if values}
    for where, one in _chosen(study):
        for key, value in wanted(one, study.compare.by).items():
            if key not in known:
                rule, hint = "is no setting of the study", did_you_mean(key, list(known))
            elif not any(is_meant(own, value) for own in known[key]):
                rule = f"is no {key} of the study"
                hint = did_you_mean(text(value), list(map(text, known[key])))
            else:
                continue
            error = BadValue("", value if key in known else key, rule, hint)
            raise ConfigError([locate(Study, document, where, error)])
    axes = () if study.map is None else ("rows", "columns", "panels")
    for axis in axes:
        key = getattr(study.map, axis)
        if key is not None and key not in known:
            error = BadValue(axis, key, "is no setting of the study", did_you_mean(key, list(known)))
            raise ConfigError([locate(Study, document, ("map",), error)])


def _chosen(study: Study) -> Iterator[tuple[tuple[str | int, ...], Chosen]]:
    """Yield whom claims and map name, and where they do."""
    asked: list[tuple[tuple[str | int, ...], Claim | Map]] = [
        (("claims", number), claim) for number, claim in enumerate(study.claims)
    ]
    asked += [] if study.map is None else [(("map",), study.map)]
    for where, both in asked:
        for side, chosen in (("better", both.better), ("worse", both.worse)):
            yield from (((*where, side, place), one) for place, one in enumerate(chosen))


def check_seed(study: Study, document: Document, seed: Any) -> None:
    """Refuse to tune with a seed that is compared.

    Args:
        study: the study.
        document: its file.
        seed: that of the runs, where the study says none.
    """
    if study.tune and study.tune_seed in study.axes.get("seed", [seed]):
        rule = "is one of the seeds that are compared, which would favour what was tuned with it"
        raise ConfigError([locate(Study, document, (), BadValue("tune_seed", study.tune_seed, rule))])


def check_set(study: Study, given: Mapping[str, Any]) -> None:
    """Refuse a value for all runs of what differs between them."""
    for key, value in given.items():
        if why := _differs(study, key):
            hint = "--only picks some of the runs" if key in study.axes else ""
            rule = f"{why}, and would be the same in all runs"
            raise ConfigError([Problem(key, MISSING, rule, hint, f"--set {key}={value}")])


def _differs(study: Study, key: str) -> str:
    """Say how a key differs between runs, or nothing."""
    return (
        "is what the study varies"
        if key in study.axes
        else "is what the study tunes"
        if key in study.tune
        else ""
    )
