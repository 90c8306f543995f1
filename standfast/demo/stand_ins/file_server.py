"""The demo's stand-in for the NFS server: a process of its own that serves the live tree over TCP.

Invariant: it asks the fence before and after each request and cuts the connection when the port is
shut, so nothing is acknowledged that was not done while the lease was valid; and nobody is let in
until the port is open again. Whether it may run at all was asked before: its starter
(`embedded.py`) runs the guard first, as ExecStartPre does.
"""

from __future__ import annotations

import os
import re
import socket
import socketserver
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.demo.stand_ins.directory import DirectoryStore
from standfast.demo.stand_ins.fence import fence_of
from standfast.errors import StandfastError
from standfast.node.own_epoch import OwnEpoch
from standfast.node.ports import Fence, VolumeStore
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.files import read_json, write_atomically
from standfast.system.local_socket import parse, read_line, send
from standfast.system.locks import exclusive

IDLE_S = 3600.0
MAX_READ = 1 << 20
# How soon it follows the fence, seconds.
LOOK_S = 0.02
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def export_file(config: Config) -> Path:
    """What the stand-in serves: {"v": 1, "fsid": ...}; no file, no export."""
    return config.run_dir / "export.json"


def lock_file(config: Config) -> Path:
    """Held while the server runs, whoever started it."""
    return config.run_dir / "nfs.lock"


def pid_file(config: Config) -> Path:
    return config.run_dir / "nfs.pid"


class ShutPort(Exception):
    """The fence is shut: the packet is dropped, nobody gets an answer."""


class Files:
    """The requests, on the live tree of one volume."""

    def __init__(self, config: Config, fence: Fence, store: VolumeStore) -> None:
        self._config = config
        self._fence = fence
        self._store = store

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply; ShutPort when there must be none."""
        self._pass_fence()
        try:
            reply = self._carry_out(request)
        except (StandfastError, OSError, KeyError, TypeError, ValueError) as error:
            reply = {"ok": False, "error": str(error) or repr(error)}
        at = monotonic()
        self._pass_fence()
        return {**reply, "at": at, "epoch": self._epoch()}

    def _pass_fence(self) -> None:
        if not _is_open(self._fence):
            raise ShutPort

    def _epoch(self) -> int | None:
        own = OwnEpoch.load(self._config.state_dir)
        return None if own is None else own.epoch

    def _carry_out(self, request: Mapping[str, Any]) -> dict[str, Any]:
        export = read_json(export_file(self._config))
        if export is None:
            return {"ok": False, "error": "not exported"}
        operation = request["op"]
        if operation == "null":
            return {"ok": True}
        if operation == "mount":
            return {"ok": True, "fsid": export["fsid"]}
        if request["fsid"] != export["fsid"]:
            return {"ok": False, "error": "stale"}
        if not _NAME.fullmatch(request["file"]):
            return {"ok": False, "error": f"no such file: {request['file']!r}"}
        if operation == "write":
            return self._write(request["file"], request["offset"], request["data"])
        if operation == "read":
            return self._read(request["file"], request["offset"], request["length"])
        return {"ok": False, "error": f"unknown operation {operation!r}"}

    def _write(self, name: str, offset: int, text: str) -> dict[str, Any]:
        live = self._store.live()
        if live is None or not live.writable:
            return {"ok": False, "error": "read-only file system"}
        descriptor = os.open(live.path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            written = os.pwrite(descriptor, text.encode(), offset)
        finally:
            os.close(descriptor)
        return {"ok": True, "written": written}

    def _read(self, name: str, offset: int, length: int) -> dict[str, Any]:
        descriptor = os.open(self._config.paths.live / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, min(length, MAX_READ), offset)
        finally:
            os.close(descriptor)
        return {"ok": True, "data": data.decode("utf-8", "replace")}


class _Connection(socketserver.BaseRequestHandler):
    """One client: requests in turn until it goes, or the port is shut."""

    server: FileServer
    request: socket.socket

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while line := read_line(self.request, Deadline.after(IDLE_S)):
                send(self.request, self.server.files.answer(parse(line)))
        except (ShutPort, StandfastError, OSError):
            return


class FileServer(socketserver.ThreadingTCPServer):
    """Listens on the node's address and port."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64
    timeout = LOOK_S

    def __init__(self, config: Config, files: Files) -> None:
        self.files = files
        super().__init__((config.me.address, config.nfs.port), _Connection)


def serve(config: Config) -> None:
    """Serves until killed; the lock tells others that it runs."""
    fence = fence_of(config)
    files = Files(config, fence, DirectoryStore(config.paths))
    # A look at the lock (`is_locked`) holds it for an instant: worth a second try.
    with exclusive(lock_file(config), "another stand-in server", Deadline.after(2.0)):
        write_atomically(pid_file(config), f"{os.getpid()}\n")
        while True:
            while not _is_open(fence):
                sleep(LOOK_S)
            with FileServer(config, files) as server:
                while _is_open(fence):
                    server.handle_request()


def _is_open(fence: Fence) -> bool:
    return fence.state().open_for_s > 0


if __name__ == "__main__":
    from standfast.config.load import load_volume

    serve(load_volume(sys.argv[1]))
