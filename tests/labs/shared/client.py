"""NFS clients of the lab, each in a network namespace on the bridge.

Invariant: every call has a deadline; a stream's acknowledged records are exactly those
which a server confirmed as being on stable storage.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from tests.support import pace
from tests.support.commands import LabError, LabTimeout, Process, wait_for
from tests.support.null_server import SOURCE

SCRIPT = Path(__file__).with_name("nfs_client.py")
EXPORT = "/persist/services"
RECORD_BYTES = 16


class NfsFailed(LabError):
    """The server or the way to it refused; the message is libnfs's own."""


class NfsTimeout(LabTimeout):
    """No answer within the deadline: what a dropped port looks like."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One line of a stream; t_s is on the host's monotonic clock (`time.monotonic()`)."""

    t_s: float
    event: str
    """ok (record seq is stable on server), error or silent."""
    server: str
    seq: int = -1
    error: str = ""


class Client:
    """A host that mounts; paths are relative to the export."""

    def __init__(self, netns: str) -> None:
        self.netns = netns

    def _argv(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, str(SCRIPT), *argv]

    def _call(self, *argv: str, data: bytes = b"", timeout_s: float) -> bytes:
        env = dict(os.environ) | {"NFS_TIMEOUT_S": str(timeout_s)}
        process = Process(self._argv(*argv), stdin=data, env=env)
        done = process.finish(timeout_s + pace.patient(10.0))
        if done.returncode == -signal.SIGALRM:
            raise NfsTimeout(f"nfs {' '.join(argv)}: no answer within {timeout_s} s")
        if done.returncode != 0:
            raise NfsFailed(f"nfs {' '.join(argv)}: {done.stderr.strip()}")
        return done.out

    def nfs_write(
        self, server: str, path: str, data: bytes, timeout_s: float = 5.0, export: str = EXPORT
    ) -> None:
        """Replace a file; returns when the server has it stable. NfsFailed, NfsTimeout."""
        self._call("write", server, export, path, data=data, timeout_s=timeout_s)

    def nfs_read(
        self, server: str, path: str, timeout_s: float = 5.0, export: str = EXPORT
    ) -> bytes:
        """The content of a file. NfsFailed, NfsTimeout."""
        return self._call("read", server, export, path, timeout_s=timeout_s)

    def port_answers(self, address: str, port: int = 2049, timeout_s: float = 1.0) -> bool:
        """Whether something accepts a connection there within timeout_s."""
        try:
            self._call("probe", address, str(port), str(timeout_s), timeout_s=timeout_s + 5)
        except NfsFailed:
            return False
        return True

    def listen(self, port: int) -> Process:
        """A process that answers as an NFS server on this host; returns once it does. Kill it."""
        said: list[str] = []
        process = Process(
            [
                *("nsenter", f"--net=/run/netns/{self.netns}"),
                *(sys.executable, "-c", SOURCE, "", str(port)),
            ],
            out=said.append,
        )
        wait_for(lambda: said, 30.0, f"something listens at port {port} of {self.netns}", 0.01)
        return process

    def stream(
        self,
        servers: Sequence[str],
        path: str = "stream",
        interval_s: float = 0.1,
        silence_s: float = 1.0,
    ) -> Stream:
        """Start writing numbered records to whichever server takes them; see Stream."""
        argv = self._argv("stream", EXPORT, path, str(interval_s), str(silence_s), *servers)
        return Stream(argv, path)


class Stream:
    """A client that goes on writing; a context manager that ends it."""

    def __init__(self, argv: list[str], path: str) -> None:
        self.path = path
        self._events: list[StreamEvent] = []
        self._process = Process(argv, out=self._take)

    def _take(self, line: str) -> None:
        self._events.append(StreamEvent(**json.loads(line)))

    def events(self) -> list[StreamEvent]:
        """Everything so far, in order."""
        return list(self._events)

    def acknowledged(self, server: str | None = None) -> list[StreamEvent]:
        """The records which a server (None: any) confirmed as stable."""
        return [e for e in self.events() if e.event == "ok" and server in (None, e.server)]

    def wait_for_ack(
        self, server: str | None = None, after_s: float = 0.0, timeout_s: float = 30.0
    ) -> StreamEvent:
        """The first acknowledgement by a server (None: any) after a monotonic time."""

        def found() -> StreamEvent | None:
            return next((e for e in self.acknowledged(server) if e.t_s > after_s), None)

        event = wait_for(
            found, timeout_s, f"a write acknowledged by {server or 'any server'}", 0.01
        )
        assert event is not None
        return event

    def longest_gap_s(self, after_s: float = 0.0) -> float:
        """The longest time between two acknowledgements, seconds."""
        times = [e.t_s for e in self.acknowledged() if e.t_s >= after_s]
        return max((b - a for a, b in pairwise(times)), default=0.0)

    def errors(self, after_s: float = 0.0) -> list[StreamEvent]:
        """What went wrong after a monotonic time."""
        return [e for e in self.events() if e.event != "ok" and e.t_s >= after_s]

    def stop(self) -> list[StreamEvent]:
        """End it; every event."""
        self._process.kill()
        self._process.wait(60.0)
        return self.events()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def missing_records(content: bytes, acknowledged: Sequence[StreamEvent]) -> list[int]:
    """The numbers of acknowledged records that a stream's file doesn't hold."""
    return [
        e.seq
        for e in acknowledged
        if content[e.seq * RECORD_BYTES : (e.seq + 1) * RECORD_BYTES]
        != f"{e.seq:0{RECORD_BYTES - 1}d}\n".encode()
    ]
