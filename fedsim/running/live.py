"""A page that shows a run while it goes on, on this machine alone; it only reads."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsim.running.progress import Progress

PAGE = Path(__file__).with_name("templates") / "live.html"
MOST_POINTS = 2000
"""So many states are kept for whoever looks later; of more, every second one of the older is forgotten."""

WAIT_S = 15.0
"""How long nothing may be said before a line without meaning shows whether anybody still listens."""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


class Live:
    """Serves a run's progress on the loopback, at an address that cannot be guessed, until it is closed.

    Every call with a :class:`fedsim.running.progress.Progress` adds to what the page shows.

    >>> with Live("quickstart") as live:
    ...     live.address.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._points: list[dict[str, Any]] = []
        self._count, self._ended = 0, False
        self._news = threading.Condition()
        self._token = secrets.token_urlsafe(16)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="live", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_port}/{self._token}/"

    def __call__(self, progress: Progress) -> None:
        """Show a state of the run."""
        with self._news:
            self._points.append(asdict(progress))
            self._count += 1
            if len(self._points) > MOST_POINTS:
                self._points[:-1] = self._points[:-1:2]
            self._news.notify_all()

    def close(self) -> None:
        """Say that the run is over, and serve nothing any more."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def page(self, path: str) -> bytes | None:
        """Return what is at a path, or None."""
        if path != f"/{self._token}/":
            return None
        text = PAGE.read_text(encoding="utf-8")
        return text.replace("NAME", _escaped(self._name)).encode()

    def streams(self, path: str) -> bool:
        """Tell whether a path is that of the news."""
        return path == f"/{self._token}/news"

    def news(self) -> Iterator[bytes]:
        """Yield states as server-sent events: those that there are, then each as it comes, and an end."""
        seen, ended = 0, False
        while not ended:
            fresh, seen, ended = self._fresh(seen)
            yield b"".join(map(_event, fresh)) or b": nothing new\n\n"
        yield b"event: end\ndata: {}\n\n"

    def _fresh(self, seen: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Wait for states that have not been seen; return them, how many there were by then, and whether it is over."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._count > seen, WAIT_S)
            new = min(self._count - seen, len(self._points))
            return self._points[len(self._points) - new :], self._count, self._ended


def _event(point: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(point)}\n\n".encode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # whoever listens is told of the end, and need not be waited for

    def __init__(self, live: Live) -> None:
        self.live = live
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Serve the page or the news, to who asks this machine for them by its own name."""
        live, here = self.server.live, f"127.0.0.1:{self.server.server_port}"
        if self.headers.get("Host") not in (here, here.replace("127.0.0.1", "localhost")):
            self.send_error(403)
        elif live.streams(self.path):
            self._answer("text/event-stream")
            self._send(live.news())
        elif (page := live.page(self.path)) is not None:
            self._answer("text/html; charset=utf-8")
            self._send([page])
        else:
            self.send_error(404)

    def _answer(self, kind: str) -> None:
        self.send_response(200)
        for key, value in {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, pieces: Any) -> None:
        try:
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass  # nobody listens any more

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the run's."""
