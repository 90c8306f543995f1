"""Calls to an NFS server over TCP (ONC RPC, RFC 5531): each is answered by the deadline, or an
error says why not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
from collections.abc import Iterator

from standfast.errors import StandfastError, TimedOut
from standfast.system.clock import Deadline
from standfast.system.probe import connect

NFS_PROGRAM = 100003
NFS_VERSION = 4
NULL, COMPOUND = 0, 1
NOBODY = bytes(8)
"""AUTH_NONE, without a body."""
RESERVED_PORTS = range(665, 1024)
"""What an export with the option `secure` (the default) lets in; those of the kernel's client."""
RESERVED_TRIES = 8
_LAST_FRAGMENT = 0x80000000
_MAX_REPLY_BYTES = 1 << 14
_REJECTED = {1: "does not serve NFS", 2: "does not serve NFSv4"}


class Denied(StandfastError):
    """The server answered that this caller isn't let in."""


class NotHere(StandfastError):
    """The address to call from is none of this machine's."""


class Connection:
    """To one server; its calls come one after the other."""

    def __init__(self, connection: socket.socket, where: str, deadline: Deadline) -> None:
        self.where = where
        self._connection = connection
        self._deadline = deadline

    def call(self, procedure: int, arguments: bytes = b"", credential: bytes = NOBODY) -> bytes:
        """Returns the results. TimedOut, Denied, or StandfastError for another answer."""
        xid = os.urandom(4)
        header = struct.pack(">5I", 0, 2, NFS_PROGRAM, NFS_VERSION, procedure)
        call = xid + header + credential + NOBODY + arguments
        try:
            self._connection.settimeout(self._left_s())
            self._connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
            (mark,) = struct.unpack(">I", self._receive(4))
            length = mark & ~_LAST_FRAGMENT
            if not mark & _LAST_FRAGMENT or not 20 <= length <= _MAX_REPLY_BYTES:
                raise self.other_than("RPC")
            return self._results(xid, self._receive(length))
        except OSError as error:
            raise _unreached(self.where, error) from error

    def other_than(self, what: str) -> StandfastError:
        return StandfastError(f"{self.where} answered something else than {what}")

    def _left_s(self) -> float:
        left_s = self._deadline.remaining_s()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _receive(self, length: int) -> bytes:
        """Reads exactly `length` bytes by the deadline, also from a server that drips them."""
        data = b""
        while len(data) < length:
            self._connection.settimeout(self._left_s())
            piece = self._connection.recv(length - len(data))
            if not piece:
                raise OSError("it closed the connection")
            data += piece
        return data

    def _results(self, xid: bytes, reply: bytes) -> bytes:
        # xid, REPLY (1), accepted (0), verifier's flavour and length, accept_stat
        kind, denied, _flavour, verifier = struct.unpack(">4I", reply[4:20])
        if reply[:4] != xid or kind != 1:
            raise self.other_than("what was asked")
        if denied:
            raise Denied(f"{self.where} denied the call")
        end = 20 + (verifier + 3) // 4 * 4
        if len(reply) < end + 4:
            raise self.other_than("RPC")
        (status,) = struct.unpack(">I", reply[end : end + 4])
        if status != 0:
            why = _REJECTED.get(status, f"failed (RPC {status})")
            raise StandfastError(f"{self.where} {why}")
        return reply[end + 4 :]


@contextlib.contextmanager
def connected(
    address: str, port: int, deadline: Deadline, source: str | None = None
) -> Iterator[Connection]:
    """A connection to the server at this address; TimedOut, or StandfastError when there is none.

    `source`: the address from which it is called (NotHere), by a port that only root may take,
    where this process is root.
    """
    where = f"the NFS server at {address}:{port}"
    left_s = deadline.remaining_s()
    if left_s <= 0:
        raise TimedOut(f"no time left to ask {where}")
    try:
        if source is None:
            connection = connect(address, port, deadline)
        else:
            connection = _from(source, address, port, left_s)
    except OSError as error:
        raise _unreached(where, error) from error
    with connection:
        yield Connection(connection, where, deadline)


def _from(source: str, address: str, port: int, left_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(left_s)
        _bind(connection, source)
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _bind(connection: socket.socket, source: str) -> None:
    for port in secrets.SystemRandom().sample(RESERVED_PORTS, RESERVED_TRIES):
        try:
            connection.bind((source, port))
        except PermissionError:
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    connection.bind((source, 0))


def _unreached(where: str, error: OSError) -> StandfastError:
    if isinstance(error, TimeoutError):
        return TimedOut(f"{where} does not answer in time")
    if error.errno == errno.EADDRNOTAVAIL:
        return NotHere(f"{where} can't be reached from an address that isn't this machine's")
    return StandfastError(f"{where} can't be reached: {error.strerror or error}")
