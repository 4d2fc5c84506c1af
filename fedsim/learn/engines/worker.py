"""A process that does another one's jobs: what it is told comes in through its standard input."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from fedsim import beside
from fedsim.learn.engines.base import Engine, Shard
from fedsim.learn.engines.desk import Desk, dumps, loads
from fedsim.learn.lasting import check_lasting, stamps
from fedsim.learn.task import Task
from fedsim.machine import keep_freed_memory

HEAD = struct.Struct("<Q")
PLACES = 2
"""So many pieces of work are with a process at a time: it need not wait for the next one."""


@dataclass(frozen=True)
class Start:
    """What a process is told first.

    Args:
        data: the file in which the data lie, and its size in bytes.
        desks: the file for what goes to and fro, and the size of one desk in bytes.
        threads: of one operation.
        deterministic: whether torch is asked for deterministic algorithms.
        folders: of the places from which own modules are imported.
        engine: engine class, task and shard, pickled onto the data's file.
    """

    data: tuple[str, int]
    desks: tuple[str, int]
    threads: int
    deterministic: bool
    folders: list[tuple[str, ...]]
    engine: bytes


def send(to: BinaryIO, message: bytes) -> None:
    """Write a message into a pipe."""
    to.write(HEAD.pack(len(message)))
    to.write(message)
    to.flush()


def receive(source: BinaryIO) -> bytes:
    """Read a message from a pipe; an empty one says that nobody writes any more."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return b""
    size = HEAD.unpack(head)[0]
    message = source.read(size)
    return message if len(message) == size else b""


def desks(path: str, size: int) -> list[tuple[Desk, Desk]]:
    """Return the desks for what comes in and for what goes out, for each piece of work."""
    return [(Desk(path, 2 * i * size, size), Desk(path, (2 * i + 1) * size, size)) for i in range(PLACES)]


def do(engine: Engine, kind: str, items: Sequence[Any], chunk: int) -> Sequence[Any]:
    """Do a piece of work: jobs to train, or weight vectors to judge on the held-out data."""
    if kind == "train":
        before = stamps(engine.task)
        results = engine.train(items)
        check_lasting(engine.task, before)
        return results
    assert engine.data.test is not None  # nobody asks otherwise
    return engine.evaluate(items, *engine.data.test, chunk)


def main() -> None:
    """Work until nobody tells anything any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who tells
    source, to = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a model prints must not get in between
    start: Start = pickle.loads(receive(source))
    try:
        engine, (data, size) = prepared(start), start.desks
        places = desks(data, size)
    except BaseException as error:  # such as a model that cannot be imported here
        send(to, pickle.dumps(("unfit", f"{type(error).__name__}: {error}")))
        return
    send(to, pickle.dumps(("ready", "")))
    while message := receive(source):
        kind, number, place, chunk, given = pickle.loads(message)
        incoming, outgoing = places[place]
        outgoing.clear()
        try:
            answer = "done", number, place, dumps(do(engine, kind, loads(given, incoming), chunk), outgoing)
        except BaseException as error:  # it will be done again where it can be told well
            answer = "failed", number, place, repr(error).encode()
        send(to, pickle.dumps(answer))


def prepared(start: Start) -> Engine:
    """Build the engine."""
    torch.set_num_threads(start.threads)
    keep_freed_memory()
    torch.use_deterministic_algorithms(start.deterministic)
    beside.use(start.folders)
    made: tuple[type[Engine], dict[str, Any], Task, Shard]
    made = loads(start.engine, Desk(start.data[0], 0, start.data[1]), copy=False)
    kind, settings, task, shard = made
    return kind(task, shard, **settings)
