"""One local update of a run, done again alone, and compared with what the run has left of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.cheap import Pick
from fedsim.learn.engines import Sequential
from fedsim.learn.engines.device import find_device
from fedsim.learn.identity import identity
from fedsim.learn.learner import Failed
from fedsim.record.rows import rows
from fedsim.running import threads
from fedsim.running.checkpoint import Journal, files, read
from fedsim.running.replay import Foreign, Found, computed, planned
from fedsim.running.store import Store
from fedsim.spec.experiment import Experiment, load

Do = Callable[[Callable[..., Any], Sequence[Any]], Any]
"""Calls an engine with jobs, such as under a debugger."""


class Job(NamedTuple):
    """A local update in the record of a run."""

    time_us: int
    identity: str
    node: int
    round: int
    visit: int


@dataclass(frozen=True)
class Compared:
    """What a result was compared with.

    Args:
        source: whence that comes.
        apart: how far the two are apart at most, for each vector and metric; 0 means equal to the last bit.
    """

    source: str
    apart: Mapping[str, float]

    def __str__(self) -> str:
        far = {name: one for name, one in self.apart.items() if one}
        said = ", ".join(f"{name} by at most {one:.3g}" for name, one in far.items())
        what = ", ".join(self.apart)
        return f"{self.source}: " + (f"differs in {said}" if far else f"equal to the last bit ({what})")


@dataclass(frozen=True)
class Redone:
    """A local update that was done again.

    Args:
        job: which one.
        found: what it was made of.
        given: what it read, by name.
        result: what came of it, by name.
        compared: what that was compared with.
    """

    job: Job
    found: Found
    given: Mapping[str, Any]
    result: Mapping[str, Tensor]
    compared: Sequence[Compared]

    def lines(self) -> Iterator[str]:
        """Yield in lines what was done, what came of it, and whether that is what the run has."""
        job, call = self.job, self.found.call
        again = f", visit {job.visit}" if job.visit > 1 else ""
        yield f"job {job.identity}: node {job.node}, round {job.round}{again}, t = {job.time_us / 1e6:.6f} s"
        samples, work = call.learner.sizes[call.client], call.gradients
        yield f"update: {type(call.update).__name__} on {samples} samples, {work} gradients"
        for title, values in (("given", self.given), ("result", self.result)):
            for name, value in values.items():
                yield f"{title}: {name} {_shown(value)}"
        yield from map(str, self.compared)


def jobs(run: str | Path) -> list[Job]:
    """Return the local updates of a run, in the order in which they were ordered.

    Raises:
        BadValue: if the folder holds no record.
    """
    return [Job(*row) for row in rows(run, "jobs")]


def named(run: str | Path, short: str) -> Job:
    """Return the local update of a run whose identity begins with some digits.

    Raises:
        BadValue: if there is none, or several.
    """
    if not re.fullmatch("[0-9a-fA-F]{1,64}", short):
        raise BadValue("id", short, "must be the first hexadecimal digits of a local update's identity")
    fit = {job.identity: job for job in reversed(jobs(run)) if job.identity.startswith(short.lower())}
    if not fit:
        rule = "no local update of this run begins so"
        raise BadValue("id", short, rule, f"fedsim show {run} lists them, where the run has trained")
    if len(fit) > 1:
        raise BadValue("id", short, f"{len(fit)} local updates of this run begin so", "give more digits")
    return next(iter(fit.values()))


def redone(run: Path, short: str, store: Path | None = None, do: Do | None = None) -> Redone:
    """Do a local update again, alone, with the sequential engine.

    What it reads is taken from the run's checkpoints and a store, as far as it is there, and computed otherwise.

    Args:
        run: the run's folder; it may have been stopped.
        short: the first digits of the update's identity.
        store: the folder of what runs have computed, or None.
        do: calls the engine with the job before all else; None does not.

    Raises:
        BadValue: if there is no such update, or the run's data or model are others now.
        RunError: if the update fails, as it may have done in the run.
    """
    job, experiment = named(run, short), load(run / "experiment.yaml")
    with threads.limited(experiment.compute.threads):  # a sum over several threads has other last bits
        return _redone(run, job, _Past(run, experiment, store), do)


def _redone(run: Path, job: Job, past: _Past, do: Do | None) -> Redone:
    key = bytes.fromhex(job.identity)
    found = planned(run, key)
    try:
        given = found.given(past)
    except Foreign:  # Flower's strategies say of nothing how they have made it
        found = computed(run, key, past.store)
        given = found.given(past)
    engine = found.call.learner.engine
    alone = replace(
        found.call,
        learner=replace(found.call.learner, engine=Sequential(engine.task, engine.data), drop=False),
    )
    if do is not None:
        do(alone.learner.engine.train, [alone.job(given)])
    [result] = alone.run([alone], [given])
    compared = past.compare(key, result)
    if engine.kind is not Sequential or not compared:
        [other] = found.call.run([found.call], [given])
        compared.append(Compared(f"the engine {engine.name}, given the same", _apart(result, other)))
    return Redone(job, found, given, result, compared)


class _Past:
    """What a run has left of its values: its checkpoints, its journal, and a store; values are called by identity."""

    def __init__(self, run: Path, experiment: Experiment, store: Path | None) -> None:
        device = find_device(experiment.compute.device)
        self.store = None if store is None else Store(store, device)
        self._journal = Journal(rows(run, "journal"))
        self._saved = []
        for file in files(run):
            try:
                self._saved.append((file.name, read(file, self._journal, device).past.values))
            except BadValue:
                continue  # it is damaged, and what was in it is computed again

    def __call__(self, key: bytes) -> Any:
        held = next((values[key] for _, values in self._saved if key in values), None)
        return self.store.get(key) if held is None and self.store is not None else held

    def compare(self, key: bytes, result: Mapping[str, Tensor]) -> list[Compared]:
        """Compare the result of an update with all that there is of it."""
        found = []
        stored = None if self.store is None else self.store.get(key)
        if stored is not None:
            found.append(Compared("the store", _apart(result, stored)))
        entries = {name: identity(Pick(name), {"of": key}) for name in result}
        for file, values in self._saved:
            held = values.get(key) or {n: values[one] for n, one in entries.items() if one in values}
            if held:
                found.append(Compared(f"the checkpoint {file}", _apart(result, held)))
        known = self._journal.numbers
        read_of = {name: known[f"{key.hex()} {name}"] for name in result if f"{key.hex()} {name}" in known}
        if read_of:
            found.append(Compared("the numbers that the run has read", _apart(result, read_of)))
        return found


def _apart(result: Mapping[str, Tensor], other: Mapping[str, Any]) -> dict[str, float]:
    """Return how far what both have is apart, at most; NaN where only one is a number."""
    if isinstance(other, Failed):
        return {"failure": float("nan")}
    found = {}
    for name in result.keys() & other.keys():
        one, two = torch.as_tensor(result[name]).double().cpu(), torch.as_tensor(other[name]).double().cpu()
        same = torch.equal(one, two)
        found[name] = 0.0 if same or not one.numel() else float((one - two).abs().max())
    return dict(sorted(found.items()))


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if not value.dim():
        return f"= {float(value):.6g}"
    return f"{list(value.shape)}, norm {float(torch.linalg.vector_norm(value.double())):.6g}"
