"""About how long a run will take on this machine: from one local update and one evaluation that are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fedsim.learn.engines import Engine, TrainJob
from fedsim.learn.engines.base import Around
from fedsim.learn.learner import Place, Train
from fedsim.learn.local import LocalUpdate
from fedsim.machine import cores
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.peer import PeerStrategy
from fedsim.running import threads
from fedsim.running.build import Setup, updates_in

Clock = Callable[[], float]

TRIAL_S = 0.1
"""What a measurement takes at most, beside a first step."""

START_S, PAGE_S = 1.5, 3.0
"""About what it takes to begin and to end, and to draw the page of the results."""

EVENT_S = 3e-4
"""About what the simulated world takes for one local update: messages, queues, records."""

ALONE_S, GAIN = 2.0, 0.85
"""So long a process works alone; then each of several does about such a part of what it would do alone."""


def outline(setup: Setup) -> list[str]:
    """Return what trains and what it takes, one line each."""
    lines = list(setup.learner.outline())
    if setup.learner.dry:
        return lines
    return [*lines[:-1], lines[-1] + _kept(setup), f"time: {_told(setup)}"]


def _kept(setup: Setup) -> str:
    """Say what clients keep, and how much of that lies in files."""
    budget, whole = setup.learner.state_bytes, setup.kept_bytes * len(setup.learner.sizes)
    if not whole:
        return ""
    outside = 0 if budget is None else max(0, whole - budget)
    return f", and {whole / 1e6:.3g} MB that clients keep" + (
        f", {outside / 1e6:.3g} MB of it in files" if outside else ""
    )


def _told(setup: Setup) -> str:
    try:
        fixed_s, round_s = seconds(setup)
    except Exception as error:  # the run will say what is wrong, with node, round and time
        return f"not known, for a trial failed ({type(error).__name__})"
    stop = setup.experiment.stop
    if stop.rounds is None:
        return f"about {spoken(round_s)} for each round on this machine, and {spoken(fixed_s)} besides"
    most = "at most " if stop.target is not None or stop.sim_time_s is not None else ""
    return f"{most}about {spoken(fixed_s + stop.rounds * round_s)} on this machine"


def seconds(setup: Setup) -> tuple[float, float]:
    """Return about what a run takes besides its rounds, and what a round takes, in seconds."""
    experiment, engine = setup.experiment, innermost(setup.learner.engine)
    jobs = jobs_of(setup)
    with threads.limited(experiment.compute.threads):
        train_s = (
            jobs * _update_s(setup, engine, jobs) + _evaluation_s(setup, engine) / experiment.evaluate.every
        )
    rounds = experiment.stop.rounds or 1
    alone_s = min(train_s * rounds, ALONE_S) / rounds
    helpers = min(setup.learner.engine.count, cores(), max(1, round(jobs)))
    if helpers > 1:
        train_s = alone_s + (train_s - alone_s) / (helpers * GAIN)
    return START_S + PAGE_S * experiment.record.report, train_s + jobs * EVENT_S


def innermost(engine: Engine) -> Engine:
    """Return the engine that does the jobs themselves."""
    while isinstance(engine, Around):
        engine = engine.inner
    return engine


def jobs_of(setup: Setup) -> float:
    """Return about how many local updates a round has."""
    strategy, clients = setup.strategy, len(setup.learner.sizes)
    while hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    if isinstance(strategy, Arrivals):
        return float(getattr(strategy, "buffer", 1))
    if isinstance(strategy, PeerStrategy):
        return float(getattr(strategy, "sample_size", clients))
    share: float = getattr(strategy, "fraction_train", 1.0)
    return float(getattr(strategy, "participants", max(1.0, share * clients)))


def _update_s(setup: Setup, engine: Engine, jobs: float) -> float:
    """Measure a local update of a client of average size: the mean over what clients do."""
    found = [
        _one_s(setup, engine, update, jobs)
        for update in updates_in(setup.strategy, setup.experiment)
        if update.sends
    ]
    return sum(found) / max(1, len(found))


def _one_s(setup: Setup, engine: Engine, update: LocalUpdate, jobs: float) -> float:
    learner, sizes = setup.learner, engine.data.sizes
    update = update.at(1)
    mean = sum(map(update.work, sizes)) / len(sizes)
    client = min(range(len(sizes)), key=lambda one: abs(update.work(sizes[one]) - mean))
    names = (*update.takes, *update.keeps)
    zeros = torch.zeros_like(engine.task.initial)
    given = {name: engine.task.initial if name == "arrays" else zeros for name in names}
    call = Train(learner, update, client, Place(client, 1, 0.0), {})
    whole = call.job(given)
    together = min(engine.grain, max(1, round(jobs)))

    def do(steps: int) -> None:
        job = TrainJob(whole.update, client, whole.rows[:steps], whole.given, whole.seed, whole.buffers)
        engine.train([job] * together)

    took = scaled(do, len(whole.rows), busy(engine.task.device)) / together
    return took * mean / max(1, update.work(sizes[client]))


def _evaluation_s(setup: Setup, engine: Engine) -> float:
    """Measure the evaluation of all models of a round."""
    learner, experiment = setup.learner, setup.experiment
    peers = isinstance(setup.strategy, PeerStrategy)
    models = max(1.0, experiment.evaluate.nodes * len(learner.sizes)) if peers else 1.0
    x, y, chunk = learner.x_test, learner.y_test, learner.chunk
    small = min(len(y), 64)

    def do(pieces: int) -> None:
        count = min(len(y), pieces * small)
        engine.evaluate([engine.task.initial], x[:count], y[:count], chunk)

    return models * scaled(do, max(1, len(y) // small), busy(engine.task.device))


def scaled(do: Callable[[int], Any], whole: int, clock: Clock, most_s: float = TRIAL_S) -> float:
    """Return about how many seconds something takes with all its steps, from some of them.

    Args:
        do: does so many steps.
        whole: how many there are.
        clock: returns seconds.
        most_s: what the steps that are done may take, about.

    >>> spent = [0.0]
    >>> def work(steps):
    ...     spent[0] += 0.5 + 0.25 * steps
    >>> scaled(work, 100, lambda: spent[0], most_s=4.0), spent[0]  # of 100 steps 1, 1 and 5 are done
    (25.5, 3.25)
    """
    do(min(1, whole))  # the first time, memory is got and code is made ready
    first = _timed(do, min(1, whole), clock)
    if whole < 2:
        return first
    some = min(whole, max(2, int(most_s / max(first, 1e-6))))
    each = max(0.0, _timed(do, some, clock) - first) / (some - 1)
    return first + each * (whole - 1)


def _timed(do: Callable[[int], Any], steps: int, clock: Clock) -> float:
    began = clock()
    do(steps)
    return clock() - began


def busy(device: torch.device) -> Clock:
    """Return what measures the time that a device is at work: other programs must not count where that can be told."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def spoken(seconds: float) -> str:
    """Say a time as roughly as it is known.

    >>> [spoken(one) for one in (0.004, 0.26, 3.4, 47, 200, 5000, 400_000)]
    ['0.004 s', '0.3 s', '3 s', '50 s', '3 min', '1.4 h', '4.6 days']
    """
    for size, unit in ((86_400, "days"), (3600, "h")):
        if seconds >= 2 * size or (unit == "h" and seconds >= size):
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{float(f'{seconds:.1g}'):g} s"
