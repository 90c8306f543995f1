"""The shipped exporter as a process, and an agent for it to ask."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.demo.commands import command
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
    """`standfast-exporter` until the block ends."""
    [port] = free_ports(1)
    log = config.source.parent / "exporter.log"
    words = command(str(CHECKOUT / "exporters/standfast-exporter"))
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*words, "--listen", f"127.0.0.1:{port}"],
            env={"STANDFAST_CONFIG_DIR": str(config.source.parent), "PYTHONPATH": str(CHECKOUT)},
            stderr=stderr,
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
