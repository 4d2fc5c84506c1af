"""Shows how far a run has come: as a bar on a terminal or in a notebook, or as lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from fedsim.running.live import Live
from fedsim.running.progress import Progress

Told = Callable[[Progress], None]


def describe(progress: Progress) -> str:
    """Return one line about the state of a run: round, times, result, bytes, speed."""
    of = f"/{progress.rounds}" if progress.rounds is not None else ""
    items = [f"round {progress.round}{of}", f"t = {progress.sim_time_s:.3f} s"]
    if progress.accuracy is not None:
        items.append(f"accuracy {progress.accuracy:.4f}")
    items.append(f"{decimal(progress.bytes_up)} sent")
    if progress.wall_time_s > 0:
        items.append(f"{progress.clients / progress.wall_time_s:.1f} clients/s")
    left = time_left_s(progress)
    if left is not None:
        items.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(items)


def share_done(progress: Progress) -> float | None:
    """Return the share of the run that is done, from 0 to 1, or None when the run has no known end."""
    shares = []
    if progress.rounds:
        shares.append(progress.round / progress.rounds)
    if progress.sim_limit_s:
        shares.append(progress.sim_time_s / progress.sim_limit_s)
    return min(1.0, max(shares)) if shares else None


def time_left_s(progress: Progress) -> float | None:
    """Return the wall-clock seconds until the end at the present speed, or None when that is unknown."""
    done = share_done(progress)
    return progress.wall_time_s * (1 - done) / done if done else None


class Lines:
    """Progress as plain lines, at most one in a second of wall-clock time."""

    def __init__(self) -> None:
        self.shown_s: float | None = None
        self.pending: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Print the progress now, or keep it for the end."""
        self.pending = progress
        if self.shown_s is None or progress.wall_time_s - self.shown_s >= 1:
            self.flush()

    def flush(self) -> None:
        """Print what was kept."""
        if self.pending is not None:
            print(describe(self.pending), file=sys.stderr)  # noqa: T201
            self.shown_s, self.pending = self.pending.wall_time_s, None


class Notebook:
    """Progress as a bar below a notebook's cell, which changes as the run goes on."""

    def __init__(self) -> None:
        self._cell: Any = None

    def __call__(self, progress: Progress) -> None:
        """Draw the bar, or draw it anew."""
        done = share_done(progress)
        filled = "" if done is None else f' value="{done:.4f}"'
        drawn = {"text/html": f"<progress{filled}></progress> {describe(progress)}"}
        if self._cell is None:
            display = sys.modules["IPython.display"].display
            self._cell = display(drawn, raw=True, display_id=True)
        else:
            self._cell.update(drawn, raw=True)


def in_notebook() -> bool:
    """Tell whether this is a cell of a notebook, and not a terminal or a script."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel") and "IPython.display" in sys.modules


@contextmanager
def shown(quiet: bool = False) -> Iterator[Told | None]:
    """Yield what shows the progress: nothing, plain lines, or a bar on a terminal or in a notebook."""
    if quiet:
        yield None
    elif in_notebook():
        yield Notebook()
    elif sys.stderr.isatty():
        text = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1))
        columns = (BarColumn(16, table_column=Column(min_width=16)), text)
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task("starting", total=None)
            yield lambda now: bars.update(
                task, total=1.0, completed=share_done(now) or 0.0, description=describe(now)
            )
    else:
        lines = Lines()
        try:
            yield lines
        finally:
            lines.flush()


@contextmanager
def also_live(told: Told | None, name: str, wanted: bool) -> Iterator[Told | None]:
    """Yield what tells of the progress, and shows it on a page as well, if that is wanted.

    Args:
        told: what tells of it already, or None.
        name: what the page is called.
        wanted: whether there is to be a page; its address is printed on standard error.
    """
    if not wanted:
        yield told
        return
    with Live(name) as live:
        print(f"live: {live.address}", file=sys.stderr, flush=True)  # noqa: T201

        def both(now: Progress) -> None:
            live(now)
            if told is not None:
                told(now)

        yield both


def telling(progress: Told | bool | None) -> AbstractContextManager[Told | None]:
    """Return what tells of the progress: a function of the caller's own, a bar for True, or nothing."""
    return shown(quiet=not progress) if isinstance(progress, bool) else nullcontext(progress)
