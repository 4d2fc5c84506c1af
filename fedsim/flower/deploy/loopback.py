"""A SuperLink and SuperNodes as processes of this machine, and nothing left of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError, Problem, RunError
from fedsim.flower.apps.project import read_project
from fedsim.flower.deploy.guard import Guard, kill_users

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
START_S, STOP_S = 180.0, 20.0
DONE = "finished:completed"
TAIL = 3000
"""So many characters of a log are shown where something has gone wrong."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def try_deployment(
    path: str | Path, *, nodes: int, run_config: str = "", say: Callable[[str], None] = print
) -> None:
    """Run an app once in a deployment of this machine: a SuperLink and SuperNodes, which are stopped afterwards.

    Each SuperNode has its ``partition-id`` and ``num-partitions``. Nothing is encrypted, and nothing listens but on
    the loopback. Should this process be killed, they are ended, too.

    Args:
        path: the app's folder, with a pyproject.toml.
        nodes: how many SuperNodes there are.
        run_config: values that replace those of the app, such as ``"num-server-rounds=5 lr=0.1"``.
        say: told what happens, line by line, with what the ServerApp logs.

    Raises:
        ConfigError: for a mistake in the app's pyproject.toml or in ``run_config``.
        RunError: if the deployment does not come up, or the app fails; it has the ends of the logs.
    """
    root = read_project(path, run_config).root
    if nodes < 1:
        raise ConfigError([Problem("--nodes", nodes, "must be at least 1")])
    folder = Path(tempfile.mkdtemp(prefix="fedsim-deployment-"))
    try:
        with deployed(folder, nodes, say) as deployment:
            began = time.monotonic()
            options = ["--run-config", run_config] if run_config else []
            deployment.stream("run", str(root), "dep", "--stream", *options, say=say)
            status = deployment.last_run()["status"]
            if status != DONE:
                raise RunError(f"the app has ended as {status}\n{deployment.logs()}", phase="deploy")
            say(f"the app is done, after {time.monotonic() - began:.0f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Deployment:
    """Processes of one deployment, each the leader of a group of its own.

    Args:
        folder: where the logs and Flower's settings go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ports = [self.port]
        self.processes: list[subprocess.Popen[bytes]] = []
        self._guard = Guard(folder)
        self._programs: dict[int, str] = {}
        home = folder / "home"
        home.mkdir(parents=True)
        address = f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "{HOST}:{self.port}"\ninsecure = true\n'
        (home / "config.toml").write_text(address)
        self.env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "OMP_NUM_THREADS": "1",
        }

    def start_link(self) -> None:
        """Start the SuperLink and wait until it listens."""
        options = ["--insecure", "--host", HOST, "--port", str(self.port)]
        self._start("link", "flower-superlink", *options, "--disable-runtime-dependency-installation")
        self.wait_until(lambda: is_open(self.port), "the SuperLink listens")

    def start_node(self, partition: int, partitions: int) -> subprocess.Popen[bytes]:
        """Start the SuperNode that holds a partition."""
        port = free_port()
        self.ports.append(port)
        own = ["--superlink", f"{HOST}:{self.port}", "--host", HOST, "--port", str(port)]
        config = f"partition-id={partition} num-partitions={partitions}"
        return self._start(
            f"node{partition}", "flower-supernode", "--insecure", *own, "--node-config", config
        )

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the SuperLink knows so many SuperNodes."""

        def online() -> bool:
            listed = self.flwr("supernode", "list", "dep", "--format", "json")
            return listed.stdout.count('"online"') >= count

        self.wait_until(online, f"{count} SuperNodes are online")

    def flwr(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run the command ``flwr`` and return what it has printed."""
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s)

    def stream(self, *arguments: str, say: Callable[[str], None]) -> None:
        """Run the command ``flwr`` and pass on what it prints, line by line."""
        with (self.folder / "flwr.log").open("wb") as log:
            process = self._open(subprocess.PIPE, "flwr", *arguments)
            assert process.stdout is not None  # it is a pipe
            for line in process.stdout:
                log.write(line)
                say(line.decode(errors="replace").rstrip())
            process.wait()
        self.processes.remove(process)

    def last_run(self) -> dict[str, Any]:
        """Return what the SuperLink says of the last run; the exit code of ``flwr run`` says nothing."""
        listed = self.flwr("list", "dep", "--format", "json")
        found = json.loads(listed.stdout[listed.stdout.find("{") :] or "{}").get("runs") or [{}]
        return {"status": "not started", **found[0]}

    def wait_until(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait until something is done that a process which has ended will never do.

        Raises:
            RunError: if it cannot come any more, or takes too long.
        """
        end = time.monotonic() + START_S
        while not is_done():
            dead = next((process.pid for process in self.processes if process.poll() is not None), None)
            if dead is not None:
                reason = f"{self._programs[dead]} has ended before {what}\n{self.logs()}"
                raise RunError(reason, phase="deploy")
            if time.monotonic() > end:
                reason = f"still waiting after {START_S:.0f} s until {what}\n{self.logs()}"
                raise RunError(reason, phase="deploy")
            time.sleep(0.5)

    def logs(self) -> str:
        """Return how the log of every process ends."""
        texts = {file.name: file.read_text(errors="replace") for file in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"{name}:\n{COLOURS.sub('', text)[-TAIL:]}" for name, text in texts.items())

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)
        end = time.monotonic() + STOP_S
        while members(process.pid) and time.monotonic() < end:  # a killed process takes a moment to be gone
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop all processes, and kill those that do not stop."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            self.kill(process)
        while kill_users(self.folder) and time.monotonic() < end + STOP_S:
            time.sleep(0.05)
        self._guard.dismiss()

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return self._open(log, program, *arguments)

    def _open(self, output: Any, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._guard.watch(process.pid)
        self._programs[process.pid] = program
        self.processes.append(process)
        return process


@contextlib.contextmanager
def deployed(folder: Path, nodes: int, say: Callable[[str], None] = lambda _: None) -> Iterator[Deployment]:
    """Start a SuperLink and so many SuperNodes; stop them all, whatever happens.

    Args:
        folder: where the logs and Flower's settings go.
        nodes: how many SuperNodes.
        say: told what is there.
    """
    deployment = Deployment(folder)
    try:
        deployment.start_link()
        say(f"a SuperLink listens at {HOST}:{deployment.port}, without TLS: for this machine alone")
        for partition in range(nodes):
            deployment.start_node(partition, nodes)
        deployment.wait_for_nodes(nodes)
        say(f"{nodes} SuperNodes are online")
        yield deployment
    finally:
        deployment.stop()


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    """Tell whether somebody listens at a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def members(group: int) -> list[int]:
    """Return the processes of a group that are still alive, where the system shows them in ``/proc``."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found
