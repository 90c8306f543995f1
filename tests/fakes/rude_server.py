"""Servers on loopback that answer the way broken ones do; each ends with its context."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

READ_HEADERS = {"X-Consul-Index": "7", "X-Consul-KnownLeader": "true"}
Manner = Callable[[socket.socket, threading.Event], None]


@dataclass
class RudeServer:
    """`requests` holds the bytes of every request that came in."""

    address: str
    requests: list[bytes] = field(default_factory=list)


@contextmanager
def rude_server(manner: Manner) -> Iterator[RudeServer]:
    """Accept connections, read one request on each, and treat it with `manner`."""
    ending = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    server = RudeServer(f"127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def treat(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = _read_request(connection)
            if request:
                server.requests.append(request)
                manner(connection, ending)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=treat, args=(connection,), daemon=True)
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        ending.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)


def _read_request(connection: socket.socket) -> bytes:
    """Header and body, or the first bytes of something large or foreign."""
    request = connection.recv(65536)
    head, separator, body = request.partition(b"\r\n\r\n")
    _, length_given, rest = head.partition(b"Content-Length: ")
    length = int(rest.split(b"\r\n")[0]) if separator and length_given else 0
    while length < 65536 and len(body) < length:
        more = connection.recv(65536)
        if not more:
            break
        body += more
        request += more
    return request


@contextmanager
def refused_address() -> Iterator[str]:
    """A port that is bound and not listened on: connections are refused, nobody else gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def reply(
    body: bytes = b"", *, status: str = "200 OK", headers: dict[str, str] | None = None
) -> Manner:
    """One whole HTTP response."""
    given = {"Content-Length": str(len(body)), **(READ_HEADERS if headers is None else headers)}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())

    def manner(connection: socket.socket, _ending: threading.Event) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    return manner


def reply_json(doc: object, *, status: str = "200 OK") -> Manner:
    return reply(json.dumps(doc).encode(), status=status)


def raw(data: bytes) -> Manner:
    """Exactly these bytes, then the end of the connection."""

    def manner(connection: socket.socket, _ending: threading.Event) -> None:
        connection.sendall(data)

    return manner


def hang(_connection: socket.socket, ending: threading.Event) -> None:
    """Accepted, read, never answered."""
    ending.wait(30)


def begin(data: bytes) -> Manner:
    """These bytes, then nothing more."""

    def manner(connection: socket.socket, ending: threading.Event) -> None:
        connection.sendall(data)
        ending.wait(30)

    return manner


def hang_up(_connection: socket.socket, _ending: threading.Event) -> None:
    """Read, then closed without a byte."""


def late(seconds: float, manner: Manner) -> Manner:
    """Treat the connection with `manner`, but only after a while."""

    def late_manner(connection: socket.socket, ending: threading.Event) -> None:
        ending.wait(seconds)
        manner(connection, ending)

    return late_manner


def drip(start: bytes, byte: bytes, every_s: float = 0.05) -> Manner:
    """`start`, then one byte at a time for ever: each comes well within any per-read timeout."""

    def manner(connection: socket.socket, ending: threading.Event) -> None:
        connection.sendall(start)
        while not ending.wait(every_s):
            connection.sendall(byte)

    return manner


def flood(head: bytes, total: int) -> Manner:
    """A body of `total` bytes."""

    def manner(connection: socket.socket, _ending: threading.Event) -> None:
        connection.sendall(head)
        block = b"x" * 1_000_000
        for _ in range(total // len(block) + 1):
            connection.sendall(block)

    return manner
