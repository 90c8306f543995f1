"""The web server: threads, deadlines, TLS and passwords around the routes.

Invariants: nobody waits for another client: a connection has REQUEST_S to say what it wants and
SEND_S to take the answer, whatever it drips, and one address can't hold all the places. Without a
right password nothing but the open paths answers. What is asked is never logged.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from standfast.exporter.web import NO_STORE, Request, Response, Routes, dispatch, plain, query_of
from standfast.system.clock import Deadline

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

REQUEST_S = 10.0
SEND_S = 10.0
MOST_CONNECTIONS = 64
MOST_FROM_ONE = 32
LONGEST_LINE = 8192
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Site:
    """What is served, and to whom."""

    routes: Routes
    open_paths: frozenset[str] = field(default_factory=frozenset)
    """These answer without a password."""
    admits: Callable[[str | None], bool] | None = None
    """Judges an `Authorization` header; None: everybody may ask."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """The context for the next connection; None: in clear."""


def answer(site: Site, method: str, target: str, headers: dict[str, str]) -> Response:
    """Passwords first, then the route; an error of ours is a 500 without its text."""
    authorization = headers.pop("authorization", None)
    try:
        parts = urlsplit(target)
    except ValueError:
        return plain("this address can't be understood", 400)
    path = unquote(parts.path)
    if path not in site.open_paths and site.admits is not None and not site.admits(authorization):
        challenge = ("WWW-Authenticate", 'Basic realm="standfast", charset="UTF-8"')
        refused = plain("name and password, please", 401)
        return Response(refused.body, status=401, headers=(NO_STORE, challenge))
    try:
        return dispatch(site.routes, method, Request(path, query_of(parts.query), headers))
    except Exception:
        log.exception("the answer to %s failed", path)
        return plain("failed; the journal of standfast-exporter says why", 500)


class Server(ThreadingMixIn, TCPServer):
    """Listens once it exists; OSError when the address can't be had."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, site: Site) -> None:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = info[0][0]
        self.site = site
        self._places = threading.Lock()
        self._taken: Counter[str] = Counter()
        handler: Any = Handler  # made by finish_request
        super().__init__(cast(tuple[str, int], info[0][4]), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._take(client_address[0]):
            request.settimeout(0)
            try:
                request.send(BUSY if self.site.tls is None else b"")
            except OSError as error:
                log.debug("no place, and nobody to tell: %s", error)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads
            self._give_back(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_back(client_address[0])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a handshake that hangs is nobody else's matter."""
        deadline = Deadline.after(REQUEST_S)
        if self.site.tls is None:
            Handler(request, client_address, self, deadline)
            return
        request.settimeout(REQUEST_S)
        with self.site.tls().wrap_socket(request, server_side=True) as wrapped:
            Handler(wrapped, client_address, self, deadline)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("the connection of %s ended early", client_address[0], exc_info=True)

    def _take(self, address: str) -> bool:
        with self._places:
            full = self._taken.total() >= MOST_CONNECTIONS
            if full or self._taken[address] >= MOST_FROM_ONE:
                return False
            self._taken[address] += 1
            return True

    def _give_back(self, address: str) -> None:
        with self._places:
            self._taken[address] -= 1
            if self._taken[address] <= 0:
                del self._taken[address]


class Reader(io.RawIOBase):
    """A connection whose reads end at the deadline, however slowly it drips."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._deadline.check("the request")
        self._connection.settimeout(max(self._deadline.remaining_s(), 0.001))
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server_version = "standfast"
    sys_version = ""
    server: Server

    def __init__(
        self, request: Any, client_address: Any, server: Server, deadline: Deadline
    ) -> None:
        self._deadline = deadline
        super().__init__(request, client_address, server)

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(Reader(self.connection, self._deadline))

    def handle(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(LONGEST_LINE + 1)
        if len(self.raw_requestline) > LONGEST_LINE:
            self.requestline, self.request_version, self.command = "", "", ""
            self._send(plain("the request is too long", 414))
        elif self.raw_requestline and self.parse_request():
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(answer(self.server.site, self.command, self.path, headers))

    def send_error(self, code: int, *_said: str | None, **_more: str | None) -> None:
        """What the library refuses, without what was sent in it."""
        self._send(plain("this request can't be understood", code))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request may hold what nobody else should read."""

    def _send(self, response: Response) -> None:
        self.connection.settimeout(SEND_S)
        self.send_response(response.status)
        headers = {
            **_HEADERS,
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Connection": "close",
            **dict(response.headers),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
