"""What the results of local updates and evaluations depend on, by name."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fedsim.learn.book import Book
from fedsim.learn.engines import Engine
from fedsim.learn.local import LocalUpdate
from fedsim.learn.several import X


class Names:
    """Names model, engine and data of a run, each once.

    Args:
        engine: knows model and data.
        x_test: held-out inputs [N, …].
        y_test: their labels or targets [N].
        book: names what has no name of its own.
    """

    def __init__(self, engine: Engine, x_test: X, y_test: Tensor, book: Book) -> None:
        self._engine, self._test, self._book = engine, (x_test, y_test), book
        self._clients: dict[int, bytes] = {}
        self._judged: dict[int, bytes] = {}

    @cached_property
    def basis(self) -> bytes:
        """The model with its loss, and all that the last bits of a result depend on besides the job."""
        engine, threads = self._engine, torch.get_num_threads()
        return self._book.name(engine.task, engine.arithmetic, engine.kind, threads)

    @cached_property
    def test(self) -> bytes:
        """The held-out samples."""
        return self._book.name(self._test)

    def client(self, client: int) -> bytes:
        """A client's samples, in their order."""
        if client not in self._clients:
            data, own = self._engine.data, self._engine.data.owned[client]
            self._clients[client] = self._book.name(data.x.index_select(0, own), data.y.index_select(0, own))
        return self._clients[client]

    def judgement(self, client: int, update: LocalUpdate) -> bytes:
        """How hard an expert finds a client's samples, if an update asks for that."""
        if update.order is None or update.order.score != "expert":
            return b""
        if client not in self._judged:
            data = self._engine.data
            self._judged[client] = self._book.name(data.expert_losses()[data.owned[client]])
        return self._judged[client]
