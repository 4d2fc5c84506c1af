"""A real SuperLink and SuperNodes as processes on the loopback, and nothing left of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
START_S, STOP_S = 180.0, 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


class Deployment:
    """Processes of one deployment, each the leader of a group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.ports = [self.port]
        self.processes: list[subprocess.Popen[bytes]] = []
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
        options = ["--insecure", "--host", HOST, "--port", str(self.port)]
        self._start("link", "flower-superlink", *options, "--disable-runtime-dependency-installation")
        self.wait_until(lambda: is_open(self.port), "the SuperLink listens")

    def start_node(self, partition: int, partitions: int) -> subprocess.Popen[bytes]:
        port = free_port()
        self.ports.append(port)
        own = ["--superlink", f"{HOST}:{self.port}", "--host", HOST, "--port", str(port)]
        config = f"partition-id={partition} num-partitions={partitions}"
        return self._start(
            f"node{partition}", "flower-supernode", "--insecure", *own, "--node-config", config
        )

    def wait_for_nodes(self, count: int) -> None:
        def online() -> bool:
            listed = self.flwr("supernode", "list", "dep", "--format", "json")
            return listed.stdout.count('"online"') >= count

        self.wait_until(online, f"{count} SuperNodes are online")

    def flwr(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout_s)

    def last_run(self) -> dict[str, Any]:
        """Return what the SuperLink says of the last run; the exit code of ``flwr run`` says nothing."""
        listed = self.flwr("list", "dep", "--format", "json")
        return dict(json.loads(listed.stdout[listed.stdout.index("{") :])["runs"][0])

    def wait_until(self, is_done: Any, what: str) -> None:
        end = time.monotonic() + START_S
        while not is_done():
            dead = [process.args for process in self.processes if process.poll() is not None]
            assert not dead, f"{dead} ended before {what}: {self.logs()}"
            assert time.monotonic() < end, f"still waiting until {what}: {self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(
            f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log"))
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)
        end = time.monotonic() + STOP_S
        while members(process.pid) and time.monotonic() < end:  # a killed process takes a moment to be gone
            time.sleep(0.05)

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            self.kill(process)

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process


def members(group: int) -> list[int]:
    """Return the processes of a group that are still alive."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


@contextlib.contextmanager
def deployed(folder: Path, nodes: int) -> Iterator[Deployment]:
    """Start a SuperLink and so many SuperNodes; stop them all, whatever happens."""
    deployment = Deployment(folder)
    try:
        deployment.start_link()
        for partition in range(nodes):
            deployment.start_node(partition, nodes)
        deployment.wait_for_nodes(nodes)
        yield deployment
    finally:
        deployment.stop()
