"""What the agent, and whoever ends the lease process, say to it: the socket behind its loop."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.local_socket import listen, parse, read_line, send

log = logging.getLogger(__name__)

REQUEST_S = 0.5
"""A client on the socket that says nothing holds the heartbeats up for so long; as long as the
fast profile's heartbeat."""

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


class Inbox(Protocol):
    """Where requests and the word to end come in."""

    def wait(self, patience_s: float, answer: Answer) -> bool:
        """Waits until a request came, which is answered, or `patience_s` passed; False: told to
        end."""


class SocketInbox:
    """Requests to a listening socket; `stop` becomes readable when the process is to end."""

    def __init__(self, server: socket.socket, stop: socket.socket) -> None:
        self._server = server
        self._stop = stop
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._selector.register(stop, selectors.EVENT_READ)

    def close(self) -> None:
        self._selector.close()

    def wait(self, patience_s: float, answer: Answer) -> bool:
        for key, _ in self._selector.select(patience_s):
            if key.fileobj is self._stop:
                return False
            self._converse(answer)
        return True

    def _converse(self, answer: Answer) -> None:
        try:
            connection, _ = self._server.accept()
            with connection:
                request = parse(read_line(connection, Deadline.after(REQUEST_S)))
                send(connection, answer(request))
        except (StandfastError, OSError) as error:  # no descriptor left, say: no end of the lease
            log.warning("a request on the lease socket failed: %s", error)


@contextlib.contextmanager
def listening(path: Path, stop: socket.socket) -> Iterator[Inbox]:
    """Opens the inbox of this process, at `path` while the block lasts."""
    with listen(path) as server, contextlib.closing(SocketInbox(server, stop)) as inbox:
        yield inbox
