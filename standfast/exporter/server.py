"""The web server: waitress, with limits for clients that are slow, silent or many.

Invariants: a client that sends nothing, or takes nothing of its answer, is cut off after
PATIENCE_S; a route begins when its request is there as a whole, and ends without waiting for the
client. What is asked is never logged. docs/metrics.md says what is not limited.
"""

from __future__ import annotations

import logging
import socket
from wsgiref.types import WSGIApplication

from waitress.server import BaseWSGIServer, MultiSocketServer, create_server

PATIENCE_S = 10
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


def server_of(
    application: WSGIApplication, listener: socket.socket
) -> BaseWSGIServer | MultiSocketServer:
    """Returns waitress with all its limits; `run` starts to answer."""
    return create_server(
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
