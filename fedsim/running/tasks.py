"""Runs as tasks of a Ray cluster: of one that is started here, or of machines that share a folder.

Each run is whole in one task, in its own folder, as if it had been run here. What is sent is how to run it, and what
comes back are its last numbers: everything else is in the folder.
"""

from __future__ import annotations

import _thread
import functools
import logging
import os
import secrets
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsim.errors import BadValue, ConfigError, EndedError, FedsimError, Problem, RunError, clip
from fedsim.learn.engines import connection
from fedsim.learn.engines.ray import Cluster
from fedsim.machine import cores, keep_freed_memory
from fedsim.running.signals import terminable
from fedsim.spec.experiment import Compute
from fedsim.version import __version__

ADDRESS = "RAY_ADDRESS"
"""The environment variable that says where a cluster is, as for Ray itself."""

LOCAL = "local"
"""The address of a cluster that is started here, and ends with what it was started for."""

SEEN = ".shared"
"""The file by which other machines tell that a folder is the one that is meant."""

STOP_S = 60.0
"""So long runs may take to leave complete records where they are stopped."""

AGAIN_S = 10.0
"""After so long one that has been stopped, and still runs, is stopped again."""

Call = Callable[[], Any]

log = logging.getLogger("fedsim")


class Tasks:
    """Has runs done by a Ray cluster; joins it when there is something to do, and leaves it at the end of a ``with``.

    Args:
        jobs: how many runs at a time, or None for as many as the cluster has room for.
        address: HOST:PORT, ray://HOST:PORT, auto, or local; None takes what ``RAY_ADDRESS`` says, or else local.

    Raises:
        ConfigError: if Ray is missing.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        self.jobs, self.address = jobs, address or os.environ.get(ADDRESS) or LOCAL
        self._at: dict[Future[Any], tuple[int, Any]] = {}
        self._holds, self._unlike = False, set[str]()
        try:
            self._ray = connection.ray()
        except BadValue as error:
            raise ConfigError([Problem("ray", True, error.rule, error.hint)]) from error

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what is under way, so that its records are complete, and leave the cluster."""
        try:
            for _number, task in self._at.values():
                self._ray.cancel(task)
            wait(self._at, STOP_S)
        finally:
            self._at.clear()
            if self._holds:
                self._holds = False
                connection.users.remove(self)
                connection.disconnect(self._ray)

    def __call__(
        self, calls: Sequence[Callable[[], Call]], needs: Sequence[Compute], folder: Path
    ) -> Iterator[tuple[int, Call]]:
        """Do calls, and yield the number of each that has ended, and what returns its result.

        One whose process ends is made and done once more: it goes on from its last checkpoint.

        Args:
            calls: what makes them, when each is about to start.
            needs: for each, the device and the threads that it needs.
            folder: the folder in which they leave what they have done.

        Raises:
            ConfigError: if the cluster cannot be reached, or has not what a run needs.
        """
        token = secrets.token_hex(8)
        (folder / SEEN).write_text(token, encoding="utf-8")
        try:
            with terminable():
                self._join(max(one.threads for one in needs))
                home = Home(os.getcwd(), str(folder / SEEN), token, _settings(), versions())
                yield from self._done(calls, [self._asked(one) for one in needs], home)
        finally:
            (folder / SEEN).unlink(missing_ok=True)

    def _done(
        self, calls: Sequence[Callable[[], Call]], asked: Sequence[dict[str, int]], home: Home
    ) -> Iterator[tuple[int, Call]]:
        left, again = deque(range(len(calls))), set[int]()
        task = self._ray.remote(max_retries=0)(do)
        while left or self._at:
            while left and len(self._at) < (self.jobs or len(calls)):
                number = left.popleft()
                asked_for = task.options(**asked[number]).remote(calls[number](), home)
                self._at[asked_for.future()] = number, asked_for
            # Not by Ray's own wait, which makes of every signal that arrives the one of Ctrl-C.
            ended = next(iter(wait(self._at, return_when=FIRST_COMPLETED).done))
            number, _ = self._at.pop(ended)
            try:
                result = self._result(ended)
            except EndedError as error:
                if number not in again:
                    again.add(number)
                    left.appendleft(number)
                    continue
                result = functools.partial(_given, None, error)
            yield number, result

    def _result(self, task: Future[Any]) -> Call:
        """Return what returns the result of a task that has ended."""
        errors = self._ray.exceptions
        try:
            result, error, processor = task.result()
        except errors.RayTaskError as failed:  # what nobody has foreseen
            return functools.partial(_given, None, failed)
        except errors.RayError as lost:
            log.debug("a task has ended: %s", lost)
            raise EndedError from lost
        here = torch.backends.cpu.get_cpu_capability()
        if processor not in (here, *self._unlike):
            self._unlike.add(processor)
            log.warning(
                "a run was on a machine with %s, and here is %s: last digits may differ", processor, here
            )
        return functools.partial(_given, result, error)

    def _join(self, threads: int) -> None:
        """Connect this process with the cluster."""
        if not self._holds:
            try:
                self._connect(threads)
            except BadValue as error:
                rule = error.rule.replace("the address", ADDRESS)
                hint = error.hint.replace("leave the address out", f"unset {ADDRESS}")
                raise ConfigError([Problem(ADDRESS, error.value, rule, hint)]) from error
            connection.users.append(self)
            self._holds = True
        most = max((int(one["Resources"].get("CPU", 0)) for one in self._ray.nodes()), default=0)
        if most < threads:
            log.warning(
                "a run takes %d threads, and no machine of the cluster has more than %d CPUs", threads, most
            )

    def _connect(self, threads: int) -> None:
        if self.address != LOCAL:
            Cluster(address=self.address).reach()
        elif not self._ray.is_initialized():
            room = max(cores(), (self.jobs or 1) * threads)
            try:
                connection.connect(self._ray, LOCAL, num_cpus=room)
            except (Exception, SystemExit) as error:  # whatever Ray raises where it cannot start
                said = clip(" ".join(str(error).split()), 200)
                raise BadValue(ADDRESS, LOCAL, f"no Ray cluster can be started here: {said}") from error

    def _asked(self, compute: Compute) -> dict[str, int]:
        """Return what a task takes of the cluster: a card is taken where there are any and none is named."""
        card = compute.device in ("auto", "cuda") and self._ray.cluster_resources().get("GPU", 0) >= 1
        return {"num_cpus": compute.threads, "num_gpus": int(card)}


@dataclass(frozen=True)
class Home:
    """What a task needs to find everything as it is where it was sent from.

    Args:
        here: the current folder.
        file: a file in the folder for the runs.
        token: what is in it.
        settings: our environment variables.
        versions: of what must be the same.
    """

    here: str
    file: str
    token: str
    settings: dict[str, str]
    versions: dict[str, str]

    def enter(self) -> None:
        """Make this process a place where a run can be done.

        Raises:
            RunError: if it can be none.
        """
        found = versions()
        for name, its in self.versions.items():
            if found[name] != its:
                raise RunError(
                    f"{name} is {found[name]} on {os.uname().nodename}, and {its} where this began"
                )
        try:
            os.chdir(self.here)
            seen = Path(self.file).read_text(encoding="utf-8")
        except OSError:
            seen = ""
        if seen != self.token:
            folder = Path(self.here, self.file).parent
            raise RunError(
                f"{folder} is another folder on {os.uname().nodename}, or none: the machines must share it"
            )
        os.environ.update(self.settings)
        os.environ.setdefault("FEDSIM_WORKERS", "1")  # the runs of a study share the cores already
        keep_freed_memory()


def do(call: Call, home: Home) -> tuple[Any, FedsimError | None, str]:
    """Do a call in a task; return its result, what it failed with, and what the processor can."""
    processor = torch.backends.cpu.get_cpu_capability()
    try:
        home.enter()
        with _stoppable():
            return call(), None, processor
    except FedsimError as error:
        return None, error, processor


@contextmanager
def _stoppable() -> Iterator[None]:
    """Have an interrupt repeated: Python drops one that comes while it clears up, such as weak references."""
    timers: list[threading.Timer] = []

    def stop(*_: object) -> None:
        timers.append(threading.Timer(AGAIN_S, _thread.interrupt_main))
        timers[-1].daemon = True
        timers[-1].start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for timer in timers:
            timer.cancel()


def versions() -> dict[str, str]:
    """Return the versions of what all numbers depend on.

    >>> sorted(versions())
    ['fedsim', 'torch']
    """
    return {"fedsim": __version__, "torch": torch.__version__}


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("FEDSIM_")}


def _given(result: Any, error: Exception | None) -> Any:
    if error is not None:
        raise error
    return result
