from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from standfast.nfs.elsewhere import answering
from standfast.nfs.rpc_null import null_call
from standfast.node.other_server import Door
from standfast.system.clock import Deadline, monotonic, sleep
from tests.fakes.nfs_server import FakeNfsServer, serve
from tests.support.pace import patient


@contextmanager
def server(answer: Callable[[bytes], list[bytes]], pause_s: float = 0.0) -> Iterator[int]:
    """Sends the pieces of `answer(call)`; the call includes its record mark."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                for piece in answer(connection.recv(1000)):
                    connection.sendall(piece)
                    sleep(pause_s)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def reply(call: bytes, *words: int, xid: bytes | None = None) -> bytes:
    body = (call[4:8] if xid is None else xid) + struct.pack(f">{len(words)}I", *words)
    return struct.pack(">I", 0x80000000 | len(body)) + body


def ask(port: int, seconds: float = 5.0) -> str | None:
    return null_call("127.0.0.1", port, Deadline.after(seconds))


def test_a_server_that_answers_serves() -> None:
    calls: list[bytes] = []

    def answer(call: bytes) -> list[bytes]:
        calls.append(call)
        return [reply(call, 1, 0, 0, 0, 0)]

    with server(answer) as port:
        assert ask(port) is None
    mark, _xid, *words = struct.unpack(">11I", calls[0])
    assert mark == 0x80000000 | 40
    assert words == [0, 2, 100003, 4, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda call: [reply(call, 1, 0, 0, 0, 1)], "does not serve NFS"),
        (lambda call: [reply(call, 1, 0, 0, 0, 2, 3, 3)], "does not serve NFSv4"),
        (lambda call: [reply(call, 1, 0, 0, 0, 5)], r"failed \(RPC 5\)"),
        (lambda call: [reply(call, 1, 1, 0, 2, 2)], "denied the call"),
        (lambda call: [reply(call, 1, 0, 0, 0, 0, xid=b"????")], "something else than what was"),
        (lambda call: [reply(call, 1, 0, 0, 400, 0)], "something else than RPC"),
        (lambda call: [b"HTTP/1.1 400 Bad Request\r\n\r\n"], "something else than RPC"),
        (lambda call: [], "it closed the connection"),
    ],
)
def test_every_other_answer_is_said_to_be_one(
    answer: Callable[[bytes], list[bytes]], why: str
) -> None:
    with server(answer) as port:
        assert re.search(why, ask(port) or "counted as serving")


def test_an_answer_with_a_verifier_and_in_pieces_is_understood() -> None:
    def answer(call: bytes) -> list[bytes]:
        whole = reply(call, 1, 0, 1, 5, 0x41414141, 0x41000000, 0)
        return [whole[i : i + 7] for i in range(0, len(whole), 7)]

    with server(answer, 0.01) as port:
        assert ask(port) is None


def test_a_server_that_drips_is_given_up_at_the_deadline() -> None:
    before = monotonic()
    with server(lambda call: [b"\x80", b"\0", b"\0", b"d"] + [b"\0"] * 40, 0.1) as port:
        assert "in time" in (ask(port, 0.5) or "")
        assert monotonic() - before < patient(3)


def test_nobody_there_is_said_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Connection refused" in (ask(port) or "")
    assert "no time left" in (null_call("127.0.0.1", port, Deadline(0.0)) or "")


# Many at once


def test_of_doors_those_answer_that_do_what_is_asked_of_them() -> None:
    """A port that is open is enough where a fence should have shut it."""
    with serve(FakeNfsServer()) as nfs, server(lambda _: [b"HTTP/1.1 200 OK\r\n\r\n"]) as web:
        ports = (nfs.port, web)
        doors = [Door("127.0.0.1", port, spoken) for port in ports for spoken in (True, False)]
        doors.append(Door("nobody.invalid", nfs.port, nfs=True))
        answered = answering(doors, Deadline.after(patient(1.0)))
    assert answered == {doors[0], doors[1], doors[3]}
    assert answering([], Deadline.after(5.0)) == frozenset()


def test_doors_behind_which_nobody_speaks_take_no_longer_than_the_deadline() -> None:
    began = monotonic()
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        doors = [Door(f"127.0.0.{number}", port, nfs=True) for number in range(1, 17)]
        assert answering(doors, Deadline.after(0.2)) == frozenset()
    assert monotonic() - began < patient(3.0)
