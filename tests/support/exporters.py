"""The real exporter as a process, and an agent of the test's that it asks."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standfast.demo.commands import STANDFAST, command
from standfast.system.local_socket import listen, read_line, send
from tests.support.consul_clusters import free_ports
from tests.support.waiting import soon, wait_for


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
def exporting(
    environment: Mapping[str, str],
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The real exporter as a process, and the address of its page."""
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}/"
    words = command(STANDFAST, "exporter", "--listen", f"127.0.0.1:{port}")
    with subprocess.Popen(words, env=environment) as exporter:
        try:
            wait_for(lambda: answers(url) or exporter.poll() is not None, 60.0, "its first answer")
            assert exporter.poll() is None
            yield url, exporter
        finally:
            exporter.kill()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}-/healthy", timeout=20).close()
    except OSError:
        return False
    return True


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
