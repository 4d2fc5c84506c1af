"""Trying a model out before a run: whether it fits the data, what it draws, and what it changes.

All clients share one module, and weights and buffers are exchanged in it. So a model must keep nothing else from one
call to the next, must leave its buffers alone in evaluation, and must draw nothing but what torch's generators give it
in training. No list of layers could tell: the model is called a few times, and looked at before and after.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import BadValue, RunError
from fedsim.learn.contents import Leaf, changes, contents, equal
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.draws import seeded, states
from fedsim.learn.lasting import SHARED, lasting
from fedsim.learn.losses import Loss, loss_of
from fedsim.learn.masks import Draws, Masked
from fedsim.learn.raised import passes, told
from fedsim.learn.several import X, called, cast, extremes, joined, leaves
from fedsim.learn.task import Batch, Held, Task

log = logging.getLogger("fedsim")

SEED = 6103515625
"""Nobody else's: a model that seeds torch itself is seen to do so."""

SAMPLES = 4
"""How many samples a model is called with."""

FROM_TORCH = "draw from torch, which is seeded for every client and round"


def tried(
    modules: Sequence[nn.Module],
    data: Dataset,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    held: Held = "average",
    loss: Loss | None = None,
) -> Task:
    """Try a model out, and return it as a task that knows whether it draws, and what must not change.

    Args:
        modules: the model, made twice; the first is returned, and is called: so what it computes once is there.
        data: its first and last samples are used.
        name: the model's name, for the message.
        device: where it is to be trained.
        dtype: the type of its weights.
        held: whose the buffers are that training changes.
        loss: what is to be small; None is the data's own.

    Raises:
        BadValue: with the key ``name``, if the model does not fit the data, is not made the same twice, gives NaN,
            raises, changes its state in forward, or draws random numbers that cannot be repeated.
    """
    with _phase(name, "cannot be used"):
        first, second = modules
        if second is first:  # somebody's function returns the same object every time
            second = copy.deepcopy(first)
        loss = loss_of(data.loss) if loss is None else loss
        buffers = _moving(copy.deepcopy(second), data, device, dtype)
        task, fresh = (Task(module, loss, device, dtype, buffers, held) for module in (first, second))
        trial = Trial(task, fresh, data, name)
        with _aside(task.device):
            trial.is_made_the_same()
            trial.fits()
            trial.has_losses()
            trial.leaves_weights()
            task.draws = trial.leaves_state()
            task.drops, task.mixes = trial.drops, trial.mixes()
            trial.repeats()
            trial.computes_with_what_it_is_given()
            trial.starts_well()
            trial.tells_of_mixing()
    task.fixed = lasting(task)
    return task


def check_unchanged(task: Task) -> None:
    """Refuse the result of a run in which the model has changed what it had not changed when it was tried out.

    Raises:
        RunError: naming the buffer or the frozen weights.
    """
    found = changes(task.fixed, lasting(task)) if task.fixed else []
    if found:
        kind, path = found[0]
        raise RunError(
            f"the model has changed its {kind} in forward ({path}), so no result is right; {SHARED}"
        )


@dataclass
class Trial:
    """See :func:`tried`."""

    task: Task
    fresh: Task
    data: Dataset
    name: str
    ends: list[dict[str, Leaf]] = field(default_factory=list)
    drops: bool = False

    def __post_init__(self) -> None:
        count = max(1, min(SAMPLES, len(self.data.y) // 2))
        self.used, self.other = (self._samples(first, count) for first in (0, -count))
        self.start, self.weights = self.task.initial, self.task.initial[: self.task.trained]
        self.others = 1.1 * self.weights + 0.001

    def is_made_the_same(self) -> None:
        """Refuse initial weights that depend on more than the experiment's seed, or are no numbers."""
        same = self.fresh.layout == self.task.layout and equal(self.fresh.initial, self.task.initial)
        if not same or changes(lasting(self.fresh), lasting(self.task)):
            rule = "has other initial weights or buffers when it is made a second time"
            self._refuse(rule, "draw them from torch, which is seeded by the experiment's seed")
        bad = [n for n, p in self.task.module.named_parameters() if not bool(torch.isfinite(p).all())]
        if bad:
            self._refuse(f"has NaN or infinity in its initial weights ({bad[0]})")

    def fits(self) -> None:
        """Predict samples, and refuse a model that cannot, or gives something of another shape.

        Those with the largest whole numbers are among them: an embedding fails on what it has no row for.
        """
        task, sides = self.task, (self.data.x, self.data.x_test)
        what = f"does not fit {self.data.name} (samples of shape {self.data.shape}{_numbers(sides)})"
        with _phase(self.name, what), torch.no_grad():
            outputs = task.predict(self.others.clone(), self.used.x[:1])
            for x in sides:
                if rows := extremes(x):
                    task.predict(self.others.clone(), cast(x[rows], task.device, task.dtype))
        found = tuple(getattr(outputs, "shape", ()))
        targets = tuple(self.data.y.shape[1:])
        wanted = (1, self.data.classes, *targets) if self.task.classifies else (1, *targets)
        known = self.task.criterion.known  # what somebody's own loss wants is his to say
        if known and found != wanted:  # half_square would broadcast [B, 1] against [B] without a word
            self._refuse(f"gives outputs of shape {found} for one sample of {self.data.name}, not {wanted}")

    def has_losses(self) -> None:
        """Refuse a loss that fails, or is not one number or more for each sample."""
        task, name = self.task, self.task.criterion.name
        with _phase(name, f"cannot be the loss of {self.name} on {self.data.name}"), torch.no_grad():
            values = task.criterion.values(task.predict(self.others.clone(), self.used.x), self.used.y)
        if not isinstance(values, Tensor) or values.shape[:1] != self.used.y.shape[:1]:
            rule = "must return one number for each sample, not their mean"
            raise BadValue("name", name, rule, "take reduction='none'")

    def leaves_weights(self) -> None:
        """Refuse a model that changes the weights it is called with, be they small or large."""
        for factor in (1.0, 1e3):
            before = factor * self.weights
            after = before.clone()
            try:
                with _phase(self.name, "fails in evaluation"), torch.no_grad():
                    self.task.predict(after, self.used.x)
            except BadValue:
                if factor == 1:  # weights that large may be too much for an honest model
                    raise
            start = 0
            for path, shape in self.task.layout:
                end = start + int(np.prod(shape, dtype=np.int64))
                if not equal(before[start:end], after[start:end]):
                    hint = "nn.Embedding does so with max_norm: leave that out"
                    self._refuse(f"changes its weights in forward ({path})", hint)
                start = end

    def leaves_state(self) -> bool:
        """Refuse a model that changes its state or draws in evaluation; return whether it draws in training."""
        draws = False
        usual = (self.weights, self.used, True)
        for weights, batch, settled in ((self.others, self.other, False), usual, usual):
            with self._watched("evaluation", settled) as drawn, torch.no_grad():
                self.task.predict(weights.clone(), batch.x)
            if drawn:
                hint = "let it do so only if self.training, as F.dropout(x, p, self.training) does"
                self._refuse("draws random numbers in evaluation, too", hint)
            masks = Draws(torch.tensor(SEED, device=self.task.device))
            with self._watched("training", settled) as drawn, Masked(masks):
                self.task.gradient(weights, batch)
            self.drops |= masks.calls > 0
            draws |= bool(drawn)
        for once, again in zip(self.ends[2:4], self.ends[4:], strict=True):
            for kind, path in changes(once, again):
                if kind == "tensor" and not self._alike(once.get(path), again.get(path)):
                    self._refuse(f"changes its state with every call (attribute {path})", SHARED)
        self.ends.clear()
        return draws

    def repeats(self) -> None:
        """Refuse a model that gives the same samples other outputs, once it has been called with others."""
        for training in (False, True):
            outputs = []
            for task in (self.task, self.fresh):
                with (
                    seeded(1, task.device),
                    torch.no_grad(),
                    _phase(self.name, "fails when it is called again"),
                ):
                    outputs.append(task.predict(self.weights.clone(), self.used.x, training))
            if not self._close(outputs[0], outputs[1]):
                found = changes(contents(self.fresh.module), contents(self.task.module))
                where = f" (attribute {found[0][1]})" if found else ""
                self._refuse(f"gives the same samples other outputs after other calls{where}", SHARED)

    def computes_with_what_it_is_given(self) -> None:
        """Refuse a model whose gradient is not the module's own, as when it holds its weights elsewhere, too."""
        module, batch = self.fresh.module, self.used
        weights = self.weights + self.weights.abs().mean() * torch.randn_like(self.weights)
        with _phase(self.name, "fails in training"), seeded(SEED, self.task.device), self.fresh.mode(True):
            own = [weight for weight in module.parameters() if weight.requires_grad]
            nn.utils.vector_to_parameters(weights.clone(), own)
            loss = self.fresh.mean(called(module, batch.x), batch)
            pieces = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
        with _phase(self.name, "fails in training"), seeded(SEED, self.task.device):
            found, mean = self.task.gradient(weights, batch)
        wanted = torch.cat([loss.detach().reshape(1), *(piece.reshape(-1) for piece in pieces)])
        if not self._close(wanted, torch.cat([mean.reshape(1), found]), 10_000):
            rule = "does not learn from the weights it is called with: its gradient is not the module's own"
            self._refuse(rule, "use its weights by their names alone, and without checkpoints")

    def starts_well(self) -> None:
        """Refuse a model whose loss or gradient is no number before it has learned anything."""
        with _phase(self.name, "fails when it is called again"):
            outputs = self.task.predict(self.weights.clone(), self.used.x)
            gradient, mean = self.task.gradient(self.weights, self.used)
            loss = self.task.losses(outputs, self.used.y)
        if not all(bool(torch.isfinite(values).all()) for values in (loss, gradient, mean)):
            what = f"gives a loss or a gradient that is NaN or infinite for samples of {self.data.name}"
            self._refuse(f"{what} before it has learned anything")

    def mixes(self) -> bool:
        """Tell whether outputs in training depend on what else is in a batch; in doubt they do."""
        if self.task.buffers:
            return True
        first, two = self.used.x[:1], []
        for beside in (self.used.x[1:2], self.other.x[-1:]):
            try:
                draws = Draws(torch.tensor(SEED, device=self.task.device))
                with Masked(draws), seeded(1, self.task.device), torch.no_grad():
                    two.append(self.task.predict(self.weights.clone(), joined([first, beside]), True)[:1])
            except Exception:  # one that cannot do with two samples looks at all of them
                return True
        one, other = two
        return not torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)

    def tells_of_mixing(self) -> None:
        """Warn of a model whose outputs for a sample depend on the others in its batch."""
        with torch.no_grad(), contextlib.suppress(Exception):  # some cannot do with one sample at all
            few = self.used.x[:2]
            together = self.task.predict(self.weights.clone(), few)
            alone = [self.task.predict(self.weights.clone(), few[i : i + 1]) for i in range(len(few))]
            if not torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4):
                text = "the outputs of %s depend on what else is in a batch: results depend on evaluate.batch_size"
                log.warning(text, self.name)

    @contextmanager
    def _watched(self, mode: str, settled: bool) -> Iterator[list[bool]]:
        """Refuse what one call changes; yield a list that is empty as long as nothing has been drawn.

        What is not ``settled`` may compute numbers once, for all calls that follow.
        """
        drawn: list[bool] = []
        with self.task.mode(mode == "training"), seeded(SEED, self.task.device):
            before, others, generators = contents(self.task.module), _foreign(), states(self.task.device)
            with _phase(self.name, f"fails in {mode}"):
                yield drawn
            after = contents(self.task.module)
            self.ends.append(after)
            if not all(map(equal, generators, states(self.task.device))):
                drawn.append(True)
        for (name, old), (_, new) in zip(others, _foreign(), strict=True):
            if not equal(old, new):
                self._refuse(f"draws random numbers from {name}", FROM_TORCH)
        for kind, path in changes(before, after):
            if kind in ("weights", "buffer"):
                hint = f"{SHARED}; a buffer may change in training, and nothing in evaluation"
                self._refuse(f"changes its {kind} in forward ({path})", hint)
            if kind == "number" and settled:
                self._refuse(f"changes its state in forward (attribute {path})", SHARED)

    def _refuse(self, rule: str, hint: str = "") -> NoReturn:
        raise BadValue("name", self.name, rule, hint)

    def _alike(self, a: Leaf | None, b: Leaf | None) -> bool:
        """Tell whether two calls have left the same: a layer may keep what it was given, or what it gave."""
        tensors = [leaf.value for leaf in (a, b) if leaf is not None and isinstance(leaf.value, Tensor)]
        if len(tensors) < 2 or tensors[0].shape != tensors[1].shape or not tensors[0].is_floating_point():
            return False
        return self._close(tensors[0], tensors[1])

    def _close(self, a: Tensor, b: Tensor, bits: int = 100) -> bool:
        """Compare but for the last bits, which may depend on where in memory a constant is, or on an accelerator."""
        bits = bits if self.task.device.type == "cpu" else 10_000
        most = a.nan_to_num(0, 0, 0).abs().max()
        return torch.allclose(
            a, b, rtol=0, atol=float(bits * torch.finfo(a.dtype).eps * most), equal_nan=True
        )

    def _samples(self, first: int, count: int) -> Batch:
        index = range(len(self.data.y))[first:][:count]
        task = self.task
        x, y = (
            cast(v[index.start : index.stop], task.device, task.dtype) for v in (self.data.x, self.data.y)
        )
        return Batch(x, leaves(y)[0], torch.ones(count, dtype=task.dtype, device=task.device))


@contextmanager
def _phase(name: str, what: str) -> Iterator[None]:
    """Turn whatever a model raises into one line."""
    try:
        yield
    except BadValue:
        raise
    except BaseException as error:
        if passes(error):
            raise
        raise BadValue("name", name, f"{what}: {told(error)}") from error


def _numbers(sides: Sequence[X]) -> str:
    """Return what is to be said of whole numbers in inputs."""
    whole = [x[rows] for x in sides if (rows := extremes(x))]
    found = [
        part
        for x in whole
        for part in leaves(x)
        if not (part.is_floating_point() or part.dtype == torch.bool)
    ]
    if not found:
        return ""
    return f", whole numbers from {min(int(p.min()) for p in found)} to {max(int(p.max()) for p in found)}"


def _moving(module: nn.Module, data: Dataset, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the names of the buffers that training alone changes, or writes: that may change them later.

    What evaluation changes, too, is no state of a client, and is refused later; so is a model that fails here.
    """
    task = Task(module, data.loss, device, dtype)
    trial = Trial(task, task, data, "")
    changed: list[set[str]] = []
    written: list[set[str]] = []
    for training in (False, True):
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        marks = {name: (buffer, buffer._version) for name, buffer in module.named_buffers()}
        try:
            with _aside(device), torch.no_grad(), task.mode(training):
                for samples in (trial.used, trial.other):
                    called(module, samples.x)
        except BaseException as error:
            if passes(error):
                raise
        changed.append({name for name, old in before.items() if not equal(old, module.get_buffer(name))})
        written.append({name for name, mark in marks.items() if _is_written(mark, module.get_buffer(name))})
    moving = (changed[1] | written[1] - written[0]) - changed[0]
    return [name for name, _ in module.named_buffers() if name in moving]


def _is_written(mark: tuple[Tensor, int], now: Tensor) -> bool:
    return now is not mark[0] or now._version != mark[1]


def _foreign() -> list[tuple[str, Any]]:
    """Return the states of generators that a model may use and that nobody seeds for a client."""
    state: dict[str, Any] = np.random.get_state(legacy=False)
    numpy = (state["state"]["key"].tolist(), state["state"]["pos"], state["has_gauss"], state["gauss"])
    return [("Python's random", random.getstate()), ("NumPy's global generator", numpy)]


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Leave every global generator as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with seeded(SEED, device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
