"""The shipped exporter as a process, the agents that it asks, and a proxy before it."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.demo.commands import STANDFAST, command
from standfast.system.local_socket import listen, read_line, send
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for


@dataclass(frozen=True)
class Exporter:
    """A running one."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The address of its page."""
        return f"http://127.0.0.1:{self.port}/"

    def get(
        self, path: str, *, method: str = "GET", **headers: str
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers, body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urllib.request.urlopen(request, timeout=patient(60.0)) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/-/healthy")[0] == 200
        return False


@contextlib.contextmanager
def exporting(config: Config) -> Iterator[Exporter]:
    """`standfast-exporter` with this configuration until the block ends."""
    log = config.source.parent / "exporter.log"
    environment = {
        "STANDFAST_CONFIG_DIR": str(config.source.parent),
        "PYTHONPATH": str(CHECKOUT),
    }
    words = command(str(CHECKOUT / "exporters/standfast-exporter"))
    with _running(words, environment, log) as exporter:
        yield exporter


@contextlib.contextmanager
def serving_pages(environment: Mapping[str, str], log: Path) -> Iterator[Exporter]:
    """`standfast exporter` until the block ends."""
    with _running(command(STANDFAST, "exporter"), environment, log) as exporter:
        yield exporter


@contextlib.contextmanager
def _running(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Exporter]:
    [port] = free_ports(1)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*words, "--listen", f"127.0.0.1:{port}"], env=environment, stderr=stderr
        )
    exporter = Exporter(port, log, process)
    try:
        wait_for(lambda: exporter.answers() or process.poll() is not None, 60.0, "the first answer")
        assert process.poll() is None, log.read_text()
        yield exporter
    finally:
        process.terminate()
        process.wait(patient(20.0))


@contextlib.contextmanager
def agent(config: Config, status: Mapping[str, Any] | None) -> Iterator[None]:
    """Answers with that on the agent's socket; None: takes the question and says nothing."""
    server = listen(config.run_dir / "agent.sock")

    def answer() -> None:
        silent = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                silent.append(connection)
                if status is not None:
                    read_line(connection, soon(20.0))
                    send(connection, {"done": True, "status": status})
                    silent.pop().close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(patient(20.0))


@dataclass
class AnsweringAgent:
    """Answers `status` with `doc` on the agent's socket; None: nobody answers."""

    path: Path
    doc: Mapping[str, Any] | None = None
    asked: int = 0
    _server: socket.socket | None = field(default=None, repr=False)

    def says(self, doc: Mapping[str, Any] | None) -> None:
        self.doc = doc
        if doc is None and self._server is not None:
            self.path.unlink()
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None
        elif doc is not None and self._server is None:
            self._server = listen(self.path)
            threading.Thread(target=self._answer, args=[self._server], daemon=True).start()

    def _answer(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                read_line(connection, soon(20.0))
                self.asked += 1
                send(connection, {"done": True, "status": self.doc})


@contextlib.contextmanager
def behind_a_password(url: str, user: str, password: str) -> Iterator[str]:
    """A reverse proxy before the page, which wants this name and password: its address."""
    right = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != right:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic realm=standfast")
                self.end_headers()
                return
            with urllib.request.urlopen(url + self.path[1:], timeout=20) as answer:
                self.send_response(200)
                for name in ("Content-Type", "Content-Security-Policy"):
                    self.send_header(name, answer.headers[name])
                self.end_headers()
                self.wfile.write(answer.read())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
