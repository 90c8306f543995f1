#!/usr/bin/env python3
"""An NFSv4 client without the kernel: libnfs by ctypes, for the lab.

Invariant: a line that says "ok" is printed after the server confirmed that the data is
on stable storage (WRITE followed by COMMIT), never before.

Usage: nfs_client.py write|read SERVER EXPORT PATH   (data on stdin or stdout)
       nfs_client.py probe SERVER PORT TIMEOUT_S     (exit 0: something accepts there)
       nfs_client.py stream EXPORT PATH INTERVAL_S SILENCE_S SERVER...
Any of them ends by SIGALRM after NFS_TIMEOUT_S seconds, if that is set.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

RECORD_BYTES = 16
CHUNK_BYTES = 2048  # libnfs 4.0 fails to encode NFSv4 writes from 4 KiB on
_lib: ctypes.CDLL | None = None


class NfsError(Exception):
    """What libnfs says went wrong, and its errno."""

    def __str__(self) -> str:
        return str(self.args[0])


def library() -> ctypes.CDLL:
    """libnfs with the argument types that differ from int."""
    global _lib  # noqa: PLW0603 (loaded once, and only by the commands that need it)
    if _lib is None:
        _lib = ctypes.CDLL("libnfs.so.13")
        pointer, number = ctypes.c_void_p, ctypes.c_uint64
        _lib.nfs_init_context.restype = pointer
        _lib.nfs_get_error.restype = ctypes.c_char_p
        _lib.nfs_pwrite.argtypes = [pointer, pointer, number, number, ctypes.c_char_p]
        _lib.nfs_pread.argtypes = [pointer, pointer, number, number, pointer]
    return _lib


class Mount:
    """One mounted export."""

    def __init__(self, server: str, export: str) -> None:
        self.lib = library()
        self.context = ctypes.c_void_p(self.lib.nfs_init_context())
        self.lib.nfs_set_version(self.context, 4)
        self.lib.nfs_set_autoreconnect(self.context, 0)
        self._ok(self.lib.nfs_mount(self.context, server.encode(), export.encode()))

    def _ok(self, result: int) -> int:
        if result < 0:
            said = self.lib.nfs_get_error(self.context) or b""
            raise NfsError(f"{os.strerror(-result)}: {said.decode(errors='replace')}", -result)
        return result

    def open(self, path: str, flags: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        name = f"/{path.lstrip('/')}".encode()
        self._ok(self.lib.nfs_open2(self.context, name, flags, 0o644, ctypes.byref(handle)))
        return handle

    def open_or_create(self, path: str) -> ctypes.c_void_p:
        """For writing; libnfs creates exclusively, so what is there is opened without."""
        try:
            return self.open(path, os.O_RDWR)
        except NfsError as error:
            if error.args[1] != errno.ENOENT:
                raise
        return self.open(path, os.O_CREAT | os.O_RDWR)

    def truncate(self, handle: ctypes.c_void_p) -> None:
        self._ok(self.lib.nfs_ftruncate(self.context, handle, ctypes.c_uint64(0)))

    def write(self, handle: ctypes.c_void_p, offset: int, data: bytes) -> None:
        """Write all of it and make it stable."""
        while data:
            chunk = data[:CHUNK_BYTES]
            done = self._ok(self.lib.nfs_pwrite(self.context, handle, offset, len(chunk), chunk))
            offset, data = offset + done, data[done:]
        self._ok(self.lib.nfs_fsync(self.context, handle))

    def read(self, handle: ctypes.c_void_p) -> bytes:
        buffer = ctypes.create_string_buffer(CHUNK_BYTES)
        content = b""
        while True:
            count = self._ok(
                self.lib.nfs_pread(self.context, handle, len(content), CHUNK_BYTES, buffer)
            )
            if count == 0:
                return content
            content += buffer.raw[:count]

    def close(self, handle: ctypes.c_void_p) -> None:
        self._ok(self.lib.nfs_close(self.context, handle))


def say(**event: object) -> None:
    """One JSON line with the monotonic time, which all containers of a host share."""
    print(json.dumps({"t_s": time.monotonic()} | event), flush=True)


def write(server: str, export: str, path: str) -> None:
    mount = Mount(server, export)
    handle = mount.open_or_create(path)
    mount.truncate(handle)
    mount.write(handle, 0, sys.stdin.buffer.read())
    mount.close(handle)


def read(server: str, export: str, path: str) -> None:
    mount = Mount(server, export)
    handle = mount.open(path, os.O_RDONLY)
    sys.stdout.buffer.write(mount.read(handle))


def probe(server: str, port: str, timeout_s: str) -> None:
    with socket.create_connection((server, int(port)), float(timeout_s)):
        pass


def records(server: str, export: str, path: str, interval_s: str, first: str) -> NoReturn:
    """Write record after record to one server; the process ends at the first error."""
    mount = Mount(server, export)
    handle = mount.open_or_create(path)
    number = int(first)
    while True:
        record = f"{number:0{RECORD_BYTES - 1}d}\n".encode()
        mount.write(handle, number * RECORD_BYTES, record)
        say(event="ok", server=server, seq=number)
        number += 1
        time.sleep(float(interval_s))


def stream(export: str, path: str, interval_s: str, silence_s: str, *servers: str) -> NoReturn:
    """Write records for ever, to whichever server takes them.

    A server that is silent for silence_s is left for the next one. The worker is a process,
    as a call into libnfs on a dead connection can't be interrupted otherwise.
    """
    number, turn, last_error = 0, 0, ""
    while True:
        server = servers[turn % len(servers)]
        turn += 1
        try:
            probe(server, "2049", "0.2")
        except OSError as error:
            if last_error != (last_error := f"{server}: {error}"):
                say(event="error", server=server, error=str(error))
            time.sleep(0.05)
            continue
        # Not by the `sh` library: its import takes 0.1 s, which each question of a test would pay.
        argv = (sys.executable, __file__, "records", server, export, path, interval_s, str(number))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker:
            number = follow(worker, server, number, float(silence_s))
        time.sleep(0.05)


def follow(worker: subprocess.Popen[bytes], server: str, number: int, silence_s: float) -> int:
    """Pass the worker's lines on until it ends or falls silent; the next record's number."""
    assert worker.stdout is not None
    line = b""
    while select.select([worker.stdout], [], [], silence_s)[0]:
        got = os.read(worker.stdout.fileno(), 65536)
        if not got:
            break
        *whole, line = (line + got).split(b"\n")
        for text in whole:
            try:
                event = json.loads(text)
            except ValueError:
                say(event="error", server=server, error=text.decode(errors="replace"))
                continue
            print(text.decode(), flush=True)
            number = event["seq"] + 1
    else:
        say(event="silent", server=server, error=f"no answer for {silence_s} s")
    worker.kill()
    return number


def main() -> None:
    signal.setitimer(signal.ITIMER_REAL, float(os.environ.get("NFS_TIMEOUT_S", "0")))
    command, *arguments = sys.argv[1:]
    commands: dict[str, Callable[..., None]] = {
        "write": write,
        "read": read,
        "probe": probe,
        "records": records,
        "stream": stream,
    }
    try:
        commands[command](*arguments)
    except (NfsError, OSError) as error:
        sys.exit(f"{command}: {error}")


if __name__ == "__main__":
    main()
