"""An NFS server on loopback that speaks as much of RPC and NFSv4.1's XDR as a check needs.

It keeps what a server keeps (clients, sessions), so that a test sees what is left behind, and does
what its fields say: deny, hang, answer with an error.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

FSID = "6b1f1d5e-6d3e-4a8c-9c57-0c7a3b9e2f10"
NAMES = {
    9: "getattr", 15: "lookup", 24: "putrootfh", 42: "exchange_id", 43: "create_session",
    44: "destroy_session", 53: "sequence", 57: "destroy_clientid",
}  # fmt: skip
ALONE = {"exchange_id", "create_session", "destroy_session", "destroy_clientid"}


class Xdr:
    """Reads arguments; running short is the caller's fault."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, length: int) -> bytes:
        assert len(self.data) >= length, "the call is too short"
        piece, self.data = self.data[:length], self.data[length + (-length % 4) :]
        return piece

    def word(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def opaque(self) -> bytes:
        return self.take(self.word())


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def opaque(data: bytes) -> bytes:
    return words(len(data)) + data + bytes(-len(data) % 4)


@dataclass
class FakeNfsServer:
    """`serve` gives it a port."""

    tree: dict[str, str] = field(default_factory=dict)
    """Exported paths and their fsids; what is above one is the root's pseudo file system."""
    port: int = 0
    mountd: str = "answers"
    """Or "hangs", or "denies" whoever has to be known."""
    errors: dict[str, int] = field(default_factory=dict)
    """The status of an operation, by its name."""
    hangs_at: str = ""
    """An operation that gets no answer."""
    clients: set[bytes] = field(default_factory=set)
    sessions: dict[bytes, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    peers: list[tuple[str, int]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def answer(self, call: bytes) -> bytes | None:
        """The reply to a call; None: there is none."""
        xdr = Xdr(call)
        xid, kind, version, program, nfs, procedure = (
            xdr.take(4), *(xdr.word() for _ in range(5)),
        )  # fmt: skip
        assert (kind, version, program, nfs) == (0, 2, 100003, 4)
        flavour, credential = xdr.word(), Xdr(xdr.opaque())
        assert (xdr.word(), xdr.opaque()) == (0, b""), "no verifier"
        accepted = xid + words(1, 0, 0, 0, 0)
        if procedure == 0:
            self.calls.append("null")
            return accepted
        if self.mountd == "hangs":
            return None
        if self.mountd == "denies":
            self.calls.append("denied")
            return xid + words(1, 1, 1, 1)
        results = self.compound(xdr, None if flavour == 0 else self.user(flavour, credential))
        return None if results is None else accepted + results

    @staticmethod
    def user(flavour: int, credential: Xdr) -> int:
        assert flavour == 1
        credential.word()
        assert credential.opaque() == b""
        uid, gid, groups = credential.word(), credential.word(), credential.word()
        assert (gid, groups, credential.data) == (0, 0, b"")
        return uid

    def compound(self, xdr: Xdr, user: int | None) -> bytes | None:
        assert xdr.opaque() == b""
        assert xdr.word() == 1, "the minor version"
        count, results, status = xdr.word(), [], 0
        if not count:
            self.calls.append("empty")
        self.path = "?"
        for index in range(count):
            name = NAMES[number := xdr.word()]
            self.calls.append(name)
            assert (name in ALONE) == (count == 1)
            assert (name == "sequence") == (index == 0 and count > 1)
            assert user == 0
            if name == self.hangs_at:
                return None
            result: Any = self.errors.get(name) or getattr(self, name)(xdr)
            status = result if isinstance(result, int) else 0
            results.append(words(number, status) + (b"" if status else result))
            if status:
                break
        else:
            assert xdr.data == b"", "more than was announced"
        return words(status, 0, len(results)) + b"".join(results)

    def exchange_id(self, xdr: Xdr) -> Any:
        verifier, owner = xdr.take(8), xdr.opaque()
        assert owner.startswith(b"standfast")
        assert [xdr.word() for _ in range(3)] == [0, 0, 0]
        client = verifier
        self.clients.add(client)
        # Odd lengths, and an implementation that says who it is.
        names = opaque(b"server") + opaque(b"scope") + words(1) + opaque(b"x") + opaque(b"yz")
        return client + words(7, 0, 0) + bytes(8) + names + bytes(12)

    def create_session(self, xdr: Xdr) -> Any:
        client = xdr.take(8)
        assert (xdr.word(), xdr.word()) == (7, 0)
        channels = [[xdr.word() for _ in range(7)] for _ in range(2)]
        assert channels[0] == channels[1] and channels[0][-1] == 0
        assert [xdr.word() for _ in range(3)] == [1 << 30, 1, 0]
        if client not in self.clients:
            return 10022
        session = b"S" * 8 + client
        self.sessions[session] = client
        return session + words(7, 0) + 2 * words(*channels[0])

    def sequence(self, xdr: Xdr) -> Any:
        session = xdr.take(16)
        request = [xdr.word() for _ in range(4)]
        assert request == [1, 0, 0, 0]
        return session + words(*request, 0) if session in self.sessions else 10052

    def putrootfh(self, _xdr: Xdr) -> Any:
        self.path = ""
        return b""

    def lookup(self, xdr: Xdr) -> Any:
        self.path += "/" + xdr.opaque().decode()
        known = any(f"{path}/".startswith(f"{self.path}/") for path in self.tree)
        return b"" if known else 2

    def getattr(self, xdr: Xdr) -> Any:
        assert (xdr.word(), xdr.word()) == (1, 1 << 8)
        return words(1, 1 << 8) + opaque(UUID(self.tree[self.path]).bytes)

    def destroy_session(self, xdr: Xdr) -> Any:
        return b"" if self.sessions.pop(xdr.take(16), None) else 10052

    def destroy_clientid(self, xdr: Xdr) -> Any:
        client = xdr.take(8)
        if client in self.sessions.values():
            return 10074
        self.clients.discard(client)
        return b""


@contextlib.contextmanager
def serve(
    server: FakeNfsServer, address: str = "127.0.0.1", port: int = 0
) -> Iterator[FakeNfsServer]:
    """Serves at this port (0: one of its own) until the context ends."""
    listener = socket.create_server((address, port))
    server.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def treat(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            stream = connection.makefile("rb")
            while mark := stream.read(4):
                reply = server.answer(stream.read(int.from_bytes(mark, "big") & 0x7FFFFFFF))
                if reply is None:
                    server.ended.wait(30)
                    return
                # In two pieces.
                record = words(0x80000000 | len(reply)) + reply
                connection.sendall(record[:7])
                connection.sendall(record[7:])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                server.peers.append(peer)
                threads.append(threading.Thread(target=treat, args=(connection,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        server.ended.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)
