"""How the demo's clients speak to its stand-in for an NFS server: one JSON line each way.

Invariant: as with NFS, a file system has an id (`fsid`), and a call with another one gets a clean
"stale", never another tree's data; and a server behind a shut port says nothing at all.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from standfast.errors import StandfastError, TimedOut, Unreachable
from standfast.system.clock import Deadline
from standfast.system.local_socket import parse, read_line, send


class Stale(StandfastError):
    """The file system that was mounted is not the one served now: mount again."""


class Session:
    """A connection to one server; every call ends by its deadline."""

    def __init__(self, address: str, port: int, deadline: Deadline) -> None:
        try:
            self._connection = socket.create_connection(
                (address, port), timeout=max(deadline.remaining_s(), 0.001)
            )
        except TimeoutError as error:
            raise TimedOut(f"{address}:{port} does not answer") from error
        except OSError as error:
            raise Unreachable(f"{address}:{port}: {error.strerror or error}") from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def call(self, request: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """The server's answer; Stale, Unreachable (the connection was cut), TimedOut."""
        try:
            send(self._connection, request)
        except OSError as error:
            raise Unreachable(f"the connection broke: {error}") from error
        line = read_line(self._connection, deadline)
        if not line:
            raise Unreachable("the server cut the connection")
        reply = parse(line)
        if reply.get("ok") is True:
            return reply
        if reply.get("error") == "stale":
            raise Stale("stale file handle")
        raise StandfastError(str(reply.get("error")))

    def null(self, deadline: Deadline) -> Mapping[str, Any]:
        """A call that only asks whether it serves: {epoch, at}; `at` is monotonic seconds."""
        return self.call({"op": "null"}, deadline)

    def mount(self, deadline: Deadline) -> str:
        """The id of the file system that is served."""
        return str(self.call({"op": "mount"}, deadline)["fsid"])

    def write(
        self, fsid: str, where: tuple[str, int], text: str, deadline: Deadline
    ) -> Mapping[str, Any]:
        """Writes at (file, offset): the same again does no harm, as with NFS."""
        name, offset = where
        request = {"op": "write", "fsid": fsid, "file": name, "offset": offset, "data": text}
        return self.call(request, deadline)

    def read(self, fsid: str, where: tuple[str, int], length: int, deadline: Deadline) -> str:
        name, offset = where
        request = {"op": "read", "fsid": fsid, "file": name, "offset": offset, "length": length}
        return str(self.call(request, deadline)["data"])
