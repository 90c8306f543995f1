"""One JSON line each way over a unix socket: how processes of one node speak to each other.

The sockets lie in a directory of root's with mode 0600: who can connect may do everything.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from standfast.errors import AS_ROOT, NeedsRoot, NotRunning, StandfastError, TimedOut, Unreachable
from standfast.system.clock import Deadline

MAX_LINE = 1 << 20


class Receives(Protocol):
    """What an answer is sent to: a connection, or what passes it on."""

    def sendall(self, data: bytes, /) -> object: ...


def listen(path: Path) -> socket.socket:
    """Returns a listening socket at `path`, replacing one that a killed process left there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    server.bind(str(temporary))
    temporary.chmod(0o600)
    temporary.rename(path)  # nobody sees it with another mode
    server.listen(16)
    return server


def read_line(connection: socket.socket, deadline: Deadline) -> bytes:
    """Returns one line without its end; empty at the end of the stream. TimedOut,
    StandfastError."""
    data = b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(deadline.remaining_s(), 0.001))
        try:
            byte = connection.recv(65536)
        except TimeoutError as error:
            raise TimedOut("no whole line arrived in time") from error
        except OSError as error:
            raise Unreachable(f"the connection broke: {error}") from error
        if not byte:
            break
        data += byte
        if len(data) > MAX_LINE:
            raise StandfastError(f"a line of more than {MAX_LINE} bytes")
    return data.rstrip(b"\n")


def send(connection: Receives, doc: Mapping[str, Any]) -> None:
    """Sends an object as one JSON line; OSError."""
    connection.sendall(json.dumps(doc).encode() + b"\n")


def parse(line: bytes) -> Mapping[str, Any]:
    """Returns the JSON object in a line; StandfastError for anything else."""
    try:
        doc = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StandfastError(f"not a JSON line: {line[:80]!r}") from error
    if not isinstance(doc, dict):
        raise StandfastError(f"not a JSON object: {line[:80]!r}")
    return doc


@contextlib.contextmanager
def connect(path: Path, deadline: Deadline) -> Iterator[socket.socket]:
    """Yields a connection to the process that listens at `path`; NotRunning when there is none,
    NeedsRoot, Unreachable."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(max(deadline.remaining_s(), 0.001))
        try:
            connection.connect(str(path))
        except OSError as error:
            if isinstance(error, PermissionError):
                raise NeedsRoot(f"{path} can't be asked. {AS_ROOT}") from error
            nobody = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            kind = NotRunning if nobody else Unreachable
            raise kind(f"nobody answers at {path}: {error.strerror or error}") from error
        yield connection


def ask(path: Path, doc: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
    """Sends one request and returns its one answer."""
    with connect(path, deadline) as connection:
        try:
            send(connection, doc)
        except OSError as error:
            raise Unreachable(f"the process at {path} takes no request: {error}") from error
        line = read_line(connection, deadline)
    if not line:
        raise Unreachable(f"the process at {path} ended without an answer")
    return parse(line)
