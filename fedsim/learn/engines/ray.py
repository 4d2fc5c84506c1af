"""The same jobs over the processors of a Ray cluster, on this machine or on many.

Ray's object store takes the place of the memory that processes of one machine share: data are put into it once, and so
is every larger vector that jobs read; what goes to and fro are references. A job's result depends on the job alone, so
that no number depends on how many actors there are, where they are, or which of them dies.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim import beside
from fedsim.errors import BadValue, clip
from fedsim.learn.data.samples import library
from fedsim.learn.engines import connection
from fedsim.learn.engines.base import Engine, Known
from fedsim.learn.engines.desk import dumps, loads
from fedsim.learn.engines.process import GRACE_S
from fedsim.learn.engines.worker import PLACES, do
from fedsim.learn.engines.workers import Piece, Workers, known_tensors, tensors_of
from fedsim.machine import keep_freed_memory
from fedsim.ranges import Count
from fedsim.version import __version__

PIECE_S = 0.05
"""A piece of work takes at least about so long: handing one over takes some milliseconds."""

LEAST_BYTES = 100_000
"""Vectors of fewer bytes go along with the jobs: Ray does not lay those into its store either."""

REACH_S = 5.0
"""So long a cluster may take to answer."""

Item = TypeVar("Item")
log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Cluster:
    """The jobs of another engine, over the CPUs or GPUs of a Ray cluster.

    This process works along. The bits are those of the other engine, as long as all machines have one kind of
    processor and one version of fedsim and of torch; who has another one is not used.

    Args:
        inner: the engine that does the jobs: auto, an engine's name, or a dotted path.
        address: of the cluster: HOST:PORT, ray://HOST:PORT, or auto for one that runs on this machine; null starts one
            here that ends with the run.
        actors: processes that work beside this one; null takes one for each CPU, or each GPU if the device is one.

    >>> Cluster("closed").inner
    'closed'
    """

    inner: str = "auto"
    address: str | None = None
    actors: Count | None = None

    def reach(self) -> None:
        """Connect this process with the cluster, unless it is one that is started when it is needed.

        Raises:
            BadValue: with the key ``engine.address``, if it cannot be reached; ``engine.name``, if Ray is missing.
        """
        ray = connection.ray()
        if self.address is None:
            return
        host = self.address.removeprefix("ray://")
        if self.address != "auto" or not ray.is_initialized():
            self._call(self._newest(ray) if self.address == "auto" else host)
        if ray.is_initialized():
            self._check_connected(ray, host)
            return
        try:
            connection.connect(ray, address=self.address)
        except (
            Exception,
            SystemExit,
        ) as error:  # whatever Ray raises where versions differ, or nobody answers
            raise self._unreachable(clip(" ".join(str(error).split()))) from error

    def around(self, engine: Engine) -> Ray:
        """Return an engine that has the cluster do what another one would."""
        return Ray(engine, self)

    def _unreachable(self, why: str) -> BadValue:
        hint = "start a cluster with ray start --head, or leave the address out"
        return BadValue("engine.address", self.address, f"no Ray cluster can be reached there: {why}", hint)

    def _newest(self, ray: Any) -> str:
        """Return which cluster Ray takes by itself: it may have ended, and Ray would wait for minutes."""
        try:
            found: str = ray._private.services.get_ray_address_from_environment("auto", None)
        except ConnectionError as error:
            raise self._unreachable("none runs on this machine") from error
        return found.removeprefix("ray://")

    def _call(self, host: str) -> None:
        """Find out whether anybody answers there in Ray's language: Ray itself would wait for minutes."""
        name, _, port = host.rpartition(":")
        if not (name and port.isdecimal() and int(port) < 2**16):
            hint = "such as 10.0.0.1:6379, ray://10.0.0.1:10001 or auto"
            raise BadValue("engine.address", self.address, "must be HOST:PORT", hint)
        grpc = library("grpc")
        with grpc.insecure_channel(host) as channel:
            try:
                grpc.channel_ready_future(channel).result(REACH_S)
            except grpc.FutureTimeoutError as error:
                raise self._unreachable(f"nobody answers within {REACH_S:g} s") from error

    def _check_connected(self, ray: Any, host: str) -> None:
        found = ray.get_runtime_context().gcs_address
        if self.address not in ("auto", None) and "://" not in str(self.address) and host != found:
            raise BadValue("engine.address", self.address, f"this process is connected with {found} already")


class Ray(Workers):
    """Shares the jobs of another engine between this process and actors of a Ray cluster.

    Args:
        inner: does the jobs, here and in every actor.
        cluster: where the actors are.
    """

    called = "an actor"
    piece_s = PIECE_S

    def __init__(self, inner: Engine, cluster: Cluster) -> None:
        super().__init__(inner, 2, late_s=0.0)
        self.cluster = cluster
        self.library = connection.ray()
        self._laid: dict[int, tuple[Tensor, Any]] = {}
        self._holds = False

    @property
    def used(self) -> str:
        """Where the jobs are done."""
        return f"this process and a Ray cluster ({self.cluster.address or 'started here'})"

    def begin(self) -> None:
        """Start the actors; they join in when they are ready."""
        if not self.library.is_initialized():
            try:
                connection.connect(self.library, address=self.cluster.address or "local")
            except (Exception, SystemExit) as error:
                self._begun = True
                log.warning("Ray cannot be had (%s); one process does all the work", clip(str(error)))
                return
        connection.users.append(self)
        self._holds = True
        super().begin()

    def close(self) -> None:
        """End the actors, and what this process has started of Ray, once nobody uses it."""
        super().close()
        if self._holds:
            self._holds = False
            connection.users.remove(self)
        connection.disconnect(self.library)

    def _call(self) -> None:
        gpu = self.task.device.type == "cuda"
        threads = torch.get_num_threads()
        have = int(self.library.cluster_resources().get("GPU" if gpu else "CPU", 0)) // (
            1 if gpu else threads
        )
        here = self.cluster.address is None and not gpu
        count = self.cluster.actors or max(1, have - here)
        if count > have:
            what = f"{have} GPU(s)" if gpu else f"{have} CPU(s)" + f" of {threads} threads" * (threads > 1)
            log.warning("%d actors, and the cluster has %s: some of them will never start", count, what)
        count = min(count, sum(len(one.data.owned) for one in self.inner.members))
        self.count, self.grain = count + 1, self.inner.grain * (count + 1)
        known = Known(self.data.expert_losses()) if self._expert else None
        shelf = Shelf(self._lay, 0)
        for tensor in (
            *known_tensors(known),
            *(one for each in self.inner.members for one in tensors_of(each)),
        ):
            shelf.put(tensor)
        made = dumps(self._made(known), shelf)
        deterministic = torch.are_deterministic_algorithms_enabled()
        start = made, beside.folders(), threads, deterministic
        kind = self.library.remote(num_cpus=0 if gpu else threads, num_gpus=int(gpu), max_restarts=0)(Actor)
        actors = [kind.remote(start, *shelf.arrays) for _ in range(count)]
        self.processes = [Remote(self, actor, self._news) for actor in actors]

    def _share(
        self, kind: str, items: Sequence[Item], do: Callable[[Sequence[Item]], list[Any]], chunk: int = 0
    ) -> list[Any]:
        try:
            return super()._share(kind, items, do, chunk)
        finally:
            self._laid.clear()

    def shelf(self) -> Shelf:
        """Return what the numbers of a piece of work are laid on."""
        return Shelf(self._once)

    def _once(self, array: np.ndarray, tensor: Tensor) -> Any:
        """Put a vector into the store, unless it is there already: jobs of a round read the same model."""
        if id(tensor) not in self._laid:
            self._laid[id(tensor)] = tensor, self.library.put(array)
        return self._laid[id(tensor)][1]

    def _lay(self, array: np.ndarray, _: Tensor) -> Any:
        return self.library.put(array)


class Shelf:
    """Numbers beside a pickle, each under its place.

    Args:
        store: puts a larger array into the store and returns a reference; None keeps all of them as they are.
        least: how many bytes a larger array has.
        arrays: what lies on it already.
    """

    def __init__(
        self,
        store: Callable[[np.ndarray, Tensor], Any] | None = None,
        least: int = LEAST_BYTES,
        arrays: Sequence[Any] = (),
    ) -> None:
        self._store, self._least = store, least
        self.arrays = list(arrays)

    def put(self, tensor: Tensor) -> int:
        """Lay a tensor's numbers down, and return where."""
        array = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        stored = self._store is not None and array.nbytes >= self._least
        self.arrays.append(self._store(array, tensor) if self._store is not None and stored else array)
        return len(self.arrays) - 1

    def view(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Return what was laid down, where it lies."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes into what the store has
            return torch.from_numpy(self.arrays[start]).view(dtype).view(shape)

    def put_bytes(self, data: bytes) -> int:
        """Lay bytes down, and return where."""
        return self.put(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def take_bytes(self, start: int, size: int) -> bytes:
        """Return a copy of bytes that were laid down."""
        found: bytes = self.arrays[start][:size].tobytes()
        return found


class Actor:
    """What works in a process of the cluster.

    Args:
        start: the engine, pickled onto arrays; where own modules are; threads; whether algorithms are deterministic.
        arrays: the numbers of it, which Ray has found where they lie.
    """

    def __init__(self, start: tuple[bytes, list[tuple[str, ...]], int, bool], *arrays: np.ndarray) -> None:
        made, folders, threads, deterministic = start
        torch.set_num_threads(threads)
        keep_freed_memory()
        torch.use_deterministic_algorithms(deterministic)
        beside.use(folders)
        kind, settings, task, shard = loads(made, Shelf(arrays=arrays), copy=False)
        self._engine: Engine = kind(task, shard, **settings)

    def facts(self) -> dict[str, str]:
        """Return what the last bits of all results depend on here."""
        return facts(self._engine)

    def do(self, kind: str, chunk: int, given: bytes, *arrays: np.ndarray) -> tuple[bytes, list[Any]]:
        """Do a piece of work."""
        shelf = Shelf()
        try:
            items = loads(given, Shelf(arrays=arrays))
            return dumps(do(self._engine, kind, items, chunk), shelf), shelf.arrays
        except BaseException:  # it will be done again where it can be told well
            return b"", []


def facts(engine: Engine) -> dict[str, str]:
    """Return what the last bits of all results depend on in this process, by name."""
    cuda = engine.task.device.type == "cuda"
    name = torch.cuda.get_device_name(engine.task.device) if cuda else torch.backends.cpu.get_cpu_capability()
    return {"fedsim": __version__, "torch": torch.__version__, "the processor": name}


class Unlike(Exception):
    """An actor could compute other numbers; the text says why."""


class Remote:
    """An actor, as the process that tells it what to do sees it.

    Args:
        engine: whose jobs it does.
        actor: the actor.
        news: where its answers are put.
    """

    def __init__(self, engine: Ray, actor: Any, news: queue.SimpleQueue[tuple[Any, bytes]]) -> None:
        self._ray, self._actor, self._news, self._shelf = engine.library, actor, news, engine.shelf
        self._mine = facts(engine)
        self.free, self.ready = list(range(PLACES)), False
        self._asked: queue.SimpleQueue[tuple[int, int, Any] | None] = queue.SimpleQueue()
        self._results: dict[int, list[Any]] = {}
        self._end = ""
        self._first = actor.facts.remote()
        self._thread = threading.Thread(target=self._listen, name="fedsim-actor", daemon=True)
        self._thread.start()

    def give(self, piece: Piece, number: int, place: int) -> None:
        """Hand a piece of work over."""
        shelf = self._shelf()
        given = dumps(piece.items, shelf)
        self._asked.put((number, place, self._actor.do.remote(piece.kind, piece.chunk, given, *shelf.arrays)))

    def take(self, place: int, data: bytes) -> list[Any]:
        """Return the results that lie at a place."""
        found: list[Any] = loads(data, Shelf(arrays=self._results.pop(place)))
        return found

    def ended(self) -> str:
        """Say how it has ended."""
        return self._end

    def close(self) -> None:
        """End it; what it is at is not waited for."""
        self._asked.put(None)
        try:
            self._ray.kill(self._actor)
        except Exception as error:  # it has ended already, or the cluster has
            log.debug("an actor cannot be ended: %s", error)
        self._thread.join(GRACE_S)  # Ray must not end while somebody waits for it

    def _listen(self) -> None:
        try:
            self._compare(self._ray.get(self._first))
            self._news.put((self, pickle.dumps(("ready", ""))))
            while (asked := self._asked.get()) is not None:
                number, place, answer = asked
                data, arrays = self._ray.get(answer)
                self._results[place] = arrays
                how = "done" if data else "failed"
                self._news.put((self, pickle.dumps((how, number, place, data))))
        except (Exception, SystemExit) as error:  # whatever Ray raises, also as it ends
            said = [line for line in str(error).splitlines() if line.strip()]
            self._end = f"{type(error).__name__}: {clip(said[-1].strip() if said else '', 120)}"
            self._news.put((self, b""))

    def _compare(self, its: dict[str, str]) -> None:
        """Do without an actor whose numbers could be others."""
        for name, mine in self._mine.items():
            if its[name] != mine:
                raise Unlike(f"{name} is {its[name]} there, and {mine} here: its numbers could be others")
