"""The web server: waitress, with limits for clients that are slow, silent or many.

Invariants: a client that has not sent its whole request PATIENCE_S after the first byte, or takes
nothing of its answer for as long, is cut off, and so is one that takes longer than TAKING_S over
it; a route begins when its request is there as a whole, and ends without waiting for the client.
What is asked is never logged. docs/metrics.md says what is not limited.
"""

from __future__ import annotations

import logging
import socket
from wsgiref.types import WSGIApplication

from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server

from standfast.system.clock import monotonic

PATIENCE_S = 10
TAKING_S = 60
# Each scrape of a source that hangs takes one for some seconds; the rest answers meanwhile.
THREADS = 32
# More than that wait in the kernel, for anybody's place.
CONNECTIONS = 256
MOST_HEADER_BYTES = 16 << 10
MOST_BODY_BYTES = 1 << 10
# Far above any answer: it stays in memory, as the unit's sandbox has no place for files.
MOST_ANSWER_BYTES = 64 << 20


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at this one address; OSError when it can't be had, UnicodeError
    for a name that is none."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = addresses[0]
    listener = socket.create_server(address, family=family)
    # Its connections inherit it. waitress itself waits for ever for one that takes nothing.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE_S * 1000)
    return listener


def serve(application: WSGIApplication, listener: socket.socket) -> None:
    """Answers until KeyboardInterrupt."""
    # Its errors and infos quote what a client sent; a warning is that the connections are used up.
    logging.getLogger("waitress").addFilter(lambda record: record.levelno == logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server_of(application, listener).run()
    raise KeyboardInterrupt  # waitress took it for itself


class _Channel(HTTPChannel):
    """A connection. To waitress each byte is a sign of life: one a second keeps it for hours."""

    asking_since = taking_since = 0.0

    def handle_read(self) -> None:
        """Keeps the time of the request's first byte as that of the last activity."""
        super().handle_read()
        if self.request is None:
            self.asking_since = 0.0
        else:
            self.last_activity = self.asking_since = self.asking_since or self.last_activity

    def handle_write(self) -> None:
        """Ends a connection whose client takes too long over its answer."""
        self.taking_since = self.taking_since or monotonic()
        if monotonic() - self.taking_since > TAKING_S:
            self.will_close = True
        super().handle_write()
        if not self.total_outbufs_len:  # this isn't called again until there is another answer
            self.taking_since = 0.0


def server_of(application: WSGIApplication, listener: socket.socket) -> BaseWSGIServer:
    """Returns waitress with all its limits; `run` starts to answer."""
    made = create_server(
        application,
        sockets=[listener],
        threads=THREADS,
        # waitress counts the listener and its own wake-up pipe, too.
        connection_limit=CONNECTIONS + 2,
        channel_timeout=PATIENCE_S,
        cleanup_interval=1,
        max_request_header_size=MOST_HEADER_BYTES,
        max_request_body_size=MOST_BODY_BYTES,
        outbuf_overflow=MOST_ANSWER_BYTES,
        outbuf_high_watermark=MOST_ANSWER_BYTES,
        asyncore_use_poll=True,
        log_socket_errors=False,
        ident="standfast",
    )
    assert isinstance(made, BaseWSGIServer)  # one socket, one server
    made.channel_class = _Channel
    return made
