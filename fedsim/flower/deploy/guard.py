"""A process that cleans up when the one that has started it is gone, however it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_S, QUIET, LINGER_S = 0.2, 5, 30.0
"""How often to look whether a folder is gone, how often in a row it must be, and how long to try."""


class Guard:
    """Cleans up from a process of its own, as one that is killed cannot do it itself.

    Args:
        folder: what is removed when this process is gone.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def watch(self, group: int) -> None:
        """Kill a group of processes, too, when this process is gone."""
        assert self._process.stdin is not None  # it is a pipe
        self._process.stdin.write(f"{group}\n".encode())
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """Watch no longer."""
        self._process.kill()
        self._process.communicate()


def kill_users(folder: Path) -> int:
    """Kill the processes whose Flower home is in a folder, and return how many there were.

    A SuperLink and a SuperNode start processes in sessions of their own, which end themselves some time after their
    parent, and write as they do. They are found where the system shows them in ``/proc``.
    """
    home, count = f"FLWR_HOME={folder / 'home'}", 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if home in (process / "environ").read_text(errors="replace").split("\0"):
                os.kill(int(process.name), signal.SIGKILL)
                count += 1
    return count


def main() -> None:
    """Read the groups until nobody can name more of them, as their starter has ended, and clean up."""
    for group in list(sys.stdin):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)
    remove(Path(sys.argv[1]))


def remove(folder: Path) -> None:
    """Kill those who use a folder and remove it, until nobody makes it anew: who was just killed may be writing."""
    end_s, quiet = time.monotonic() + LINGER_S, 0
    while quiet < QUIET and time.monotonic() < end_s:
        killed = kill_users(folder)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(LOOK_S)
        quiet = 0 if killed or folder.exists() else quiet + 1


if __name__ == "__main__":
    main()
