"""A process that runs an app's ClientApp for the clients of a simulation in another one."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from flwr.clientapp import ClientApp

from fedsim import rng
from fedsim.flower import compat
from fedsim.flower.apps.applog import Line, heard
from fedsim.flower.apps.parcel import dumps, loads
from fedsim.flower.apps.project import resolve
from fedsim.flower.apps.visit import Broken, reason, run_client
from fedsim.learn.engines.desk import Desk
from fedsim.learn.engines.worker import desks, receive, send
from fedsim.logs import quiet
from fedsim.machine import keep_freed_memory


@dataclass(frozen=True)
class Start:
    """What a process is told first.

    Args:
        desks: the file for what goes to and fro, and the size of one desk in bytes.
        reference: where the ClientApp is, as ``module:attribute``.
        seed: the experiment's.
        threads: of PyTorch.
    """

    desks: tuple[str, int]
    reference: str
    seed: int
    threads: int


def main() -> None:
    """Work until nobody tells anything any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who tells
    source, to = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a ClientApp prints must not get in between
    start: Start = pickle.loads(receive(source))
    places = desks(*start.desks)
    with suppress(OSError):  # from here on nothing is left behind, whoever is killed
        os.unlink(start.desks[0])
    torch.set_num_threads(start.threads)
    keep_freed_memory()
    try:
        app = imported(start.reference, start.seed)
    except BaseException as error:  # whatever an app's modules raise
        send(to, pickle.dumps(("unfit", f"it cannot be imported there ({type(error).__name__}: {error})")))
        return
    send(to, pickle.dumps(("ready", "")))
    while message := receive(source):
        number, place, given = pickle.loads(message)
        incoming, outgoing = places[place]
        outgoing.clear()
        send(to, pickle.dumps(_answer(app, number, place, given, incoming, outgoing)))


def _answer(
    app: ClientApp, number: int, place: int, given: bytes, incoming: Desk, outgoing: Desk
) -> tuple[Any, ...]:
    try:
        message, context, key = loads(given, incoming)
    except BaseException as error:
        return "unfit", f"a message cannot be read there ({type(error).__name__}: {error})"
    done: Any
    said: list[Line] = []
    logging.getLogger().setLevel(logging.INFO)
    try:
        with quiet("flwr", logging.WARNING), heard(said, through=False):
            done = run_client(app, message, context, key)
    except BaseException as error:  # such as SystemExit
        done = Broken(reason(error), traceback.format_exc().rstrip())
    try:
        return "done", number, place, dumps(done, outgoing), said
    except Exception as error:  # whatever an app's own objects raise
        return "unfit", f"a reply cannot be sent ({type(error).__name__}: {error})"


def imported(reference: str, seed: int) -> ClientApp:
    """Import a ClientApp, once for all messages.

    Raises:
        TypeError: if it is none.
    """
    with import_seeded(seed):
        app = resolve(reference)
    if not isinstance(app, ClientApp):
        raise TypeError(f"there is a {type(app).__name__}")
    return app


def import_seeded(seed: int) -> AbstractContextManager[None]:
    """Let what modules draw while a ClientApp is imported follow from the experiment's seed, in every process."""
    return compat.seeded(rng.key(seed, "client app import"))
