"""How long a later round of the app of ``flower.py`` takes in several engines, on a machine that others use as well.

All engines stand beside each other and wait; one at a time does a round, in an order drawn anew for each turn, and
only once the machine has been at rest for a moment, unless that takes longer than ``--patience`` seconds. So they meet
the same conditions. That matters: where another program takes one of two cores, a round takes as long in two processes
as in one, which keeps the other core for itself.

What is printed is Markdown, as in ``experiments/README.md``: the median over the turns in seconds, with the least and
the most, and the median of how many times as fast as the first engine an engine was in the same turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower import APP, CASES, ENGINES, SETTING, TITLES, busy_ticks, show, spread, write_images

from fedsim.rng import stream

LOOK_S, REST = 0.2, 0.2
"""The machine is at rest if all programs together take less than this share of one core for so long."""
WARM_UP = 4
"""So many rounds are not counted; by then, processes that share the work have begun."""


def main() -> None:
    given = arguments()
    names = given.engines
    with contextlib.ExitStack() as stack:
        standing = [stack.enter_context(started(name, given)) for name in names]
        for one in standing:
            for _ in range(WARM_UP):
                one.round_s()
        turns = [turn(standing, number, given.patience) for number in range(given.turns)]
    found: dict[str, Any] = {}
    for place, name in enumerate(names):
        found[name] = spread([times[place] for times, _ in turns])
        found[name]["times_as_fast"] = statistics.median(times[0] / times[place] for times, _ in turns)
    at_rest = sum(map(operator.itemgetter(1), turns)) / len(turns) / len(names)
    print(f"Of the rounds, {at_rest:.0%} began on a machine at rest.\n")
    print("| engine | a later round | times as fast |")
    print("| --- | --- | --- |")
    for name, one in found.items():
        print(f"| {TITLES[name]} | {show(one)} | {one['times_as_fast']:.2f} |")
    if given.json:
        print(json.dumps({"case": given.case, "turns": given.turns, "at_rest": at_rest, **found}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="lenet5")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["fedsim-1", "fedsim-2", "fedsim"])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a machine at rest")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


class Standing:
    """An engine that waits before each round.

    Args:
        process: what runs it.
        folder: of its case, with the pipe that lets it go on.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process, self._folder, self._rounds = process, folder, 0

    def round_s(self) -> float:
        """Let it do a round, and return how long that took."""
        self._next_mark_s()
        began_s = time.clock_gettime(time.CLOCK_REALTIME)
        (self._folder / "gate").write_text("go")
        self._rounds += 1
        return self._next_mark_s() - began_s

    def _next_mark_s(self) -> float:
        """Wait for the mark that follows so many rounds, and return when it was made."""
        while True:
            lines = (self._folder / "marks").read_text().splitlines()
            if len(lines) > self._rounds:
                return float(lines[self._rounds].split()[1])
            if self._process.poll() is not None:
                raise SystemExit(f"{self._process.args} has ended with exit code {self._process.returncode}")
            time.sleep(0.02)


@contextlib.contextmanager
def started(engine: str, given: argparse.Namespace) -> Iterator[Standing]:
    """Start an engine, and let it wait for its first round."""
    with tempfile.TemporaryDirectory() as folder:
        case: dict[str, Any] = {**CASES[given.case], "folder": folder, "rounds": WARM_UP + given.turns}
        write_images(case, False)
        (Path(folder) / "marks").touch()
        os.mkfifo(Path(folder) / "gate")
        env = {**os.environ, SETTING: json.dumps(case), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        env["RAY_ADDRESS"] = "local"  # as in flower.py
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(APP), env.get("PYTHONPATH"))))
        command = [sys.executable, str(Path(__file__).with_name("flower.py")), "--only", engine]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        try:
            yield Standing(process, Path(folder))
            (Path(folder) / "gate").write_text("go")  # its last round is over, and it ends
            process.wait()
        finally:
            process.kill()


def turn(standing: list[Standing], number: int, patience_s: float) -> tuple[list[float], int]:
    """Let each engine do a round, and return how long each took, and how many began on a machine at rest."""
    times, at_rest = [0.0] * len(standing), 0
    for place in stream(0, "bench turns", round=number).permutation(len(standing)):
        at_rest += comes_to_rest(patience_s)
        times[place] = standing[place].round_s()
    return times, at_rest


def comes_to_rest(patience_s: float) -> bool:
    began_s = time.monotonic()
    while time.monotonic() - began_s < patience_s:
        before = busy_ticks()
        time.sleep(LOOK_S)
        if busy_ticks() - before < REST * LOOK_S * os.sysconf("SC_CLK_TCK"):
            return True
    return False


if __name__ == "__main__":
    main()
