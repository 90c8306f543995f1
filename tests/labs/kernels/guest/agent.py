"""Runs commands for the lab, over the node's control network; one thread per connection.

Request: length (u32), JSON {argv, env, input_bytes, detach}, input. Answer: frames of a kind (one
byte: o standard output, e standard error, x exit status, the last), length (u32) and data. A
connection that is closed early takes its command with it; a detached command lives on, and its
answer is its pid. {"clock": true} asks for the node's clocks instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

CHUNK = 65536


def receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(CHUNK, length - len(data)))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return bytes(data)


class Answer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lock = threading.Lock()

    def frame(self, kind: bytes, data: bytes) -> None:
        with self.lock:
            self.connection.sendall(kind + struct.pack(">I", len(data)) + data)


def copy(stream, kind: bytes, answer: Answer) -> None:  # type: ignore[no-untyped-def]
    try:
        while data := os.read(stream.fileno(), CHUNK):
            answer.frame(kind, data)
    except OSError:
        pass


def feed(stream, data: bytes) -> None:  # type: ignore[no-untyped-def]
    try:
        stream.write(data)
        stream.close()
    except OSError:
        pass


def end_with_connection(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """The other side sends nothing more: an end of file means that it has given up."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(connection: socket.socket, request: dict, data: bytes) -> None:  # type: ignore[type-arg]
    answer = Answer(connection)
    detach = request.get("detach")
    output = open(detach, "ab") if detach else subprocess.PIPE  # noqa: SIM115, PTH123
    try:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=request["env"],
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        answer.frame(b"e", f"{request['argv'][0]}: {error.strerror}\n".encode())
        answer.frame(b"x", b"127")
        return
    if detach:
        threading.Thread(target=process.wait, daemon=True).start()
        answer.frame(b"x", str(process.pid).encode())
        return
    threads = [
        threading.Thread(target=copy, args=(process.stdout, b"o", answer)),
        threading.Thread(target=copy, args=(process.stderr, b"e", answer)),
    ]
    for thread in threads:
        thread.start()
    threading.Thread(target=feed, args=(process.stdin, data), daemon=True).start()
    threading.Thread(target=end_with_connection, args=(connection, process), daemon=True).start()
    for thread in threads:
        thread.join()
    answer.frame(b"x", str(process.wait()).encode())


def serve(connection: socket.socket) -> None:
    try:
        (length,) = struct.unpack(">I", receive(connection, 4))
        request = json.loads(receive(connection, length))
        if request.get("clock"):
            clocks = [time.clock_gettime(c) for c in (time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)]
            Answer(connection).frame(b"x", json.dumps(clocks).encode())
        else:
            run(connection, request, receive(connection, request["input_bytes"]))
    except OSError:
        pass
    finally:
        # The thread that waits for an end of file holds the socket open without this.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def main() -> None:
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


main()
