"""What an NFSv4.1 client asks to get at an export, in XDR (RFC 8881): a session, and a path's fsid.

Invariant: nothing of it stays with the server. The session and the client's record are taken back
after the answer, or lapse with the server's lease time. It opens nothing and never says that it
has reclaimed everything (RECLAIM_COMPLETE), so that no server writes it down among those that a
restart would wait for, and no grace period is longer or shorter for it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from uuid import UUID

from standfast.errors import StandfastError
from standfast.nfs.rpc import COMPOUND, Connection

MOST_NAMES = 40
"""Of a path: servers take some 50 operations at a time."""
_GETATTR, _LOOKUP, _PUTROOTFH = 9, 15, 24
_EXCHANGE_ID, _CREATE_SESSION, _DESTROY_SESSION, _SEQUENCE, _DESTROY_CLIENTID = 42, 43, 44, 53, 57
_FSID = 1 << 8
"""The attribute's bit in the first word."""
_MINOR_VERSION = 1
_OK = 0
_NO_RDMA = 0
_ERRORS = {
    1: "NFS4ERR_PERM",
    2: "NFS4ERR_NOENT",
    5: "NFS4ERR_IO",
    13: "NFS4ERR_ACCESS",
    20: "NFS4ERR_NOTDIR",
    70: "NFS4ERR_STALE",
    10006: "NFS4ERR_SERVERFAULT",
    10008: "NFS4ERR_DELAY",
    10016: "NFS4ERR_WRONGSEC",
    10018: "NFS4ERR_RESOURCE",
    10021: "NFS4ERR_MINOR_VERS_MISMATCH",
}
WRONG_SECURITY = 10016


class OperationFailed(StandfastError):
    """The server answered an operation with an error of NFS."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


# AUTH_SYS: as root of no named machine, without further groups.
ROOT = struct.pack(">I", 1) + _opaque(struct.pack(">I", 0) + _opaque(b"") + bytes(12))
EMPTY = _opaque(b"") + struct.pack(">2I", _MINOR_VERSION, 0)
"""A compound of no operations: the least that is no NULL call."""


class Results:
    """The answer to a compound, read from its beginning."""

    def __init__(self, server: Connection, data: bytes) -> None:
        self._server = server
        self._data = data
        self._at = 0

    def fixed(self, length: int) -> bytes:
        end = self._at + length + (-length % 4)
        if end > len(self._data):
            raise self._server.other_than("NFSv4.1")
        piece = self._data[self._at : self._at + length]
        self._at = end
        return piece

    def words(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}I", self.fixed(4 * count))

    def opaque(self) -> bytes:
        return self.fixed(self.words(1)[0])

    def succeeded(self, operation: int, what: str) -> None:
        """Goes on to this operation's own results; OperationFailed."""
        number, status = self.words(2)
        if number != operation:
            raise self._server.other_than("what was asked")
        if status != _OK:
            name = _ERRORS.get(status, f"error {status}")
            raise OperationFailed(f"{self._server.where}: {what} failed with {name}", status)


def _ask(server: Connection, *operations: bytes) -> Results:
    header = _opaque(b"") + struct.pack(">2I", _MINOR_VERSION, len(operations))
    results = Results(server, server.call(COMPOUND, header + b"".join(operations), ROOT))
    (status,) = results.words(1)
    results.opaque()
    (count,) = results.words(1)
    if status != _OK and count == 0:
        name = _ERRORS.get(status, f"error {status}")
        raise OperationFailed(f"{server.where}: NFSv4.1 failed with {name}", status)
    return results


def fsid_at(server: Connection, names: Sequence[str]) -> UUID:
    """Returns the fsid of what a client gets at the path of these names. OperationFailed, or
    another StandfastError of the connection's."""
    with _client(server) as client, _session(server, *client) as session:
        sequence = struct.pack(">I16s4I", _SEQUENCE, session, 1, 0, 0, 0)
        lookups = [struct.pack(">I", _LOOKUP) + _opaque(os.fsencode(name)) for name in names]
        getattr_ = struct.pack(">3I", _GETATTR, 1, _FSID)
        results = _ask(server, sequence, struct.pack(">I", _PUTROOTFH), *lookups, getattr_)
        results.succeeded(_SEQUENCE, "a session's first request")
        results.fixed(16 + 5 * 4)
        results.succeeded(_PUTROOTFH, "a client's way to the root of all exports")
        for name in names:
            results.succeeded(_LOOKUP, f"a client's look for {name!r}")
        results.succeeded(_GETATTR, "a client's look at the export")
        bits = results.words(results.words(1)[0])
        attributes = results.opaque()
        if bits[:1] != (_FSID,) or any(bits[1:]) or len(attributes) != 16:
            raise server.other_than("what was asked")
        return UUID(bytes=attributes)


@contextlib.contextmanager
def _client(server: Connection) -> Iterator[tuple[bytes, int]]:
    """A client that nobody was before: its id, and the number of its first request."""
    owner = os.urandom(8) + _opaque(b"standfast " + os.urandom(8).hex().encode())
    # No flags, no protection of the state (SP4_NONE), no word on who made this.
    results = _ask(server, struct.pack(">I", _EXCHANGE_ID) + owner + struct.pack(">3I", 0, 0, 0))
    results.succeeded(_EXCHANGE_ID, "a client's first request")
    client = results.fixed(8)
    (sequence,) = results.words(1)
    try:
        yield client, sequence
    finally:
        _take_back(server, struct.pack(">I", _DESTROY_CLIENTID) + client)


@contextlib.contextmanager
def _session(server: Connection, client: bytes, sequence: int) -> Iterator[bytes]:
    # Header padding, sizes of requests, of answers and of kept answers, operations, requests.
    channel = struct.pack(">7I", 0, 8192, 8192, 1024, MOST_NAMES + 8, 1, _NO_RDMA)
    # No flags; both channels; a program for callbacks that never come, without credentials.
    arguments = client + struct.pack(">2I", sequence, 0) + 2 * channel + struct.pack(">I", 1 << 30)
    results = _ask(
        server, struct.pack(">I", _CREATE_SESSION) + arguments + struct.pack(">2I", 1, 0)
    )
    results.succeeded(_CREATE_SESSION, "a client's session")
    session = results.fixed(16)
    try:
        yield session
    finally:
        _take_back(server, struct.pack(">I", _DESTROY_SESSION) + session)


def _take_back(server: Connection, operation: bytes) -> None:
    """Best effort: what isn't taken back lapses."""
    with contextlib.suppress(StandfastError):
        _ask(server, operation)
