"""One HTTP request under one total deadline.

Invariant: `exchange` returns or raises by its deadline, whatever the other side does. Resolving
the name, connecting, the TLS handshake, sending, the header and every byte of the body draw on
the same deadline, so a server that drips bytes gains nothing. No redirect is followed; no proxy
and no environment variable is looked at.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from standfast.errors import ConfigError
from standfast.system.clock import Deadline, monotonic
from standfast.system.probe import connect

MAX_BODY_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask: `127.0.0.1:8500`, `http://host:8500` or `https://host:8501`."""

    scheme: str
    host: str
    port: int
    server_name: str = ""
    """Name that its certificate must have; empty: the host."""

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        default_scheme: str = "http",
        whose: str = "Consul",
        server_name: str = "",
    ) -> Endpoint:
        """Returns the endpoint; ConfigError when the text is not `host:port` or
        `http(s)://host:port`."""
        try:
            parts = urlsplit(text if "://" in text else f"{default_scheme}://{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _bad_address(whose, text, str(error)) from error
        if parts.scheme not in ("http", "https"):
            raise _bad_address(
                whose, text, f"the scheme {parts.scheme!r} is neither http nor https"
            )
        if "@" in parts.netloc:
            raise ConfigError(
                f"{whose} address: user names and passwords are not supported. Write host:port, "
                f"and give the ACL token in {whose.lower()}.token_file."
            )
        if not host or any(char.isspace() or not char.isprintable() for char in host):
            raise _bad_address(whose, text, "the host name is missing or not a name")
        if not port:
            raise _bad_address(whose, text, "the port is missing")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise _bad_address(whose, text, "nothing may follow the port")
        return cls(parts.scheme, host, port, server_name)

    @property
    def url(self) -> str:
        """Returns it with its scheme: nobody's default makes another of it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __str__(self) -> str:
        return self.url.removeprefix("http://")


@dataclass(frozen=True, slots=True)
class Request:
    """`target` is the path with its query, already quoted."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response; `headers` ignores case."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Failure(Enum):
    """How it came that there is no answer."""

    UNREACHABLE = "unreachable"
    """No connection, or no TLS session: nothing was sent."""
    TIMEOUT = "timeout"
    BROKEN = "broken"
    """An answer that isn't a whole HTTP response, or none at all."""


class TransportError(Exception):
    """No answer. `sent`: whether any byte of the request may have reached the other side."""

    def __init__(self, kind: Failure, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.kind = kind
        self.sent = sent


def tls_context(
    ca_cert: Path | None = None,
    client_cert: Path | None = None,
    client_key: Path | None = None,
    *,
    table: str = "consul",
) -> ssl.SSLContext:
    """Returns a context that verifies the server's certificate and name; ConfigError for bad files.

    `table` of the configuration is the one that messages name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if ca_cert is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=ca_cert)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{table}.ca_cert = {str(ca_cert)!r} can't be used ({error}). "
            "Give a readable PEM file with the CA's certificate."
        ) from error
    if client_cert is not None:
        try:
            # An encrypted key would ask at the terminal: an empty password fails instead.
            context.load_cert_chain(client_cert, client_key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{table}.client_cert = {str(client_cert)!r} with client_key = "
                f"{str(client_key)!r} can't be used ({error}). "
                "Give readable PEM files that belong together, the key without a password."
            ) from error
    return context


def exchange(
    endpoint: Endpoint,
    request: Request,
    deadline: Deadline,
    *,
    connect_by: Deadline | None = None,
    tls: ssl.SSLContext | None = None,
    most_bytes: int = MAX_BODY_BYTES,
) -> Answer:
    """Sends one request and reads its whole answer by `deadline`; TransportError otherwise.

    `connect_by` (default: the deadline) limits connecting alone, so that another address can
    still be asked. `tls` is required for an https endpoint. `most_bytes`: of the answer's body.
    """
    started = monotonic()
    link = _connect(endpoint, connect_by or deadline, tls)
    link.deadline = deadline
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    connection.auto_open = 0
    connection.sock = link
    try:
        headers = {"Connection": "close", **request.headers}
        connection.request(request.method, request.target, body=request.body, headers=headers)
        response = connection.getresponse()
        body = _read_body(response, most_bytes)
        return Answer(response.status, response.headers, body)
    except TimeoutError as error:
        text = f"no whole answer within {monotonic() - started:.1f} s"
        raise TransportError(Failure.TIMEOUT, text, sent=link.sent) from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        text = f"no whole HTTP answer: {_describe(error)}"
        raise TransportError(Failure.BROKEN, text, sent=link.sent) from error
    finally:
        connection.close()
        link.really_close()


def _bad_address(whose: str, text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{whose} address {text!r}: {why}. Write host:port, http://host:port or https://host:port."
    )


def _describe(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)[:200] or type(error).__name__


def _read_body(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    body = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > most_bytes:
            raise ValueError(f"the body is larger than {most_bytes} bytes")
    if response.length:  # what Content-Length promised and didn't come
        raise ValueError(f"the body is cut off, {response.length} bytes are missing")
    return bytes(body)


class _Link:
    """A connected socket as http.client needs it; each operation gets only what is left."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self.deadline = deadline
        self.sent = False

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._arm()
            self.sent = True
            view = view[self._sock.send(view[:_CHUNK_BYTES]) :]

    def receive_into(self, buffer: Any) -> int:
        self._arm()
        return self._sock.recv_into(buffer)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """http.client calls this when it has read the header; the body is still to come."""

    def really_close(self) -> None:
        self._sock.close()

    def _arm(self) -> None:
        left_s = self.deadline.remaining_s()
        if left_s <= 0:
            raise TimeoutError("deadline")
        self._sock.settimeout(left_s)


class _Reader(io.RawIOBase):
    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._link.receive_into(buffer)


def _connect(endpoint: Endpoint, deadline: Deadline, tls: ssl.SSLContext | None) -> _Link:
    started = monotonic()
    sock: socket.socket | None = None
    try:
        sock = connect(endpoint.host, endpoint.port, deadline)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if endpoint.scheme == "https":
            name = endpoint.server_name or endpoint.host
            sock = _start_tls(sock, name, deadline, tls or tls_context())
        return _Link(sock, deadline)
    except (OSError, ValueError) as error:  # ValueError: a host name that can't be encoded
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError):
            text = f"no connection within {monotonic() - started:.1f} s"
            raise TransportError(Failure.TIMEOUT, text, sent=False) from error
        raise TransportError(Failure.UNREACHABLE, _describe(error), sent=False) from error


def _start_tls(
    sock: socket.socket, name: str, deadline: Deadline, context: ssl.SSLContext
) -> ssl.SSLSocket:
    wrapped = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
    try:
        wrapped.settimeout(max(deadline.remaining_s(), 0.001))
        wrapped.do_handshake()  # its timeout is a total, not one per read
    except TimeoutError:
        wrapped.close()
        raise
    except OSError as error:
        wrapped.close()
        raise OSError(f"the TLS handshake failed: {error}") from error
    return wrapped
