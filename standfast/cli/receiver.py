"""The process to which `standfast receive` hands over: it has loaded everything, and forks.

Invariant: each conversation has a process of its own, which reads the configuration anew, and which
ends when whoever handed it over is gone; this one only waits, and never for one of them alone, so
that no conversation can harm another: one that a sick disk has hold of can't be killed, and is
gone when its end comes. No key takes the places of all others: half of them are the most for one
sender; and no volume, of whose disk that may be, those of another.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import struct
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NoReturn

from standfast.assembly import parts
from standfast.btrfs import store as btrfs
from standfast.cli.main import run_entry
from standfast.cli.receive import INSTALLED, MOST_BYTES, busy
from standfast.config.load import config_dir, config_files
from standfast.consul import gateway as consul
from standfast.errors import ConfigError, UsageError
from standfast.events import journal
from standfast.events.log import set_up_log
from standfast.replication import pruning, receive
from standfast.system.sd_notify import notify, watchdog_s

log = logging.getLogger(__name__)

ENTRY = "standfast.cli.services:receive"
FIRST_DESCRIPTOR = 3
"""The socket that systemd passes (sd_listen_fds)."""
REQUEST_S = 2.0
LEAST_OF_ONE, MOST_OF_ONE = 8, 32
"""Places for one sender, with few volumes and with many: TasksMax= and MemoryMax= of
standfast-receive.service are for twice the latter."""
MOST_OF_VOLUME = 4
"""Of one sender to one volume; also those count that were killed and that a disk has hold of."""
FED_IN_A_LIMIT = 4
"""So often the service manager's watchdog hears of it, also when nothing happens."""
_NOT_OURS = (
    *("JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
)
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


def most_of_one(volumes: int) -> int:
    """Returns how many places one sender (`--from`) may have, and all whose lines name none.

    A volume's cycle and a question to it are two, and the cycles of all volumes may come at once.
    """
    return min(max(LEAST_OF_ONE, 2 * volumes), MOST_OF_ONE)


def _volumes() -> int:
    """Returns how many are configured here now; what is wrong with them each conversation says."""
    try:
        return len(config_files(config_dir()))
    except ConfigError:
        return 0


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation, by its own process."""

    connection: socket.socket
    pid: int
    pidfd: int
    bound: str
    volume: str


@dataclass(frozen=True, slots=True)
class Request:
    """What sshd says of a conversation; empty where it says nothing."""

    volume: str
    bound: str
    connection: str
    asked: str

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Returns what `receive.request` wrote; ValueError for anything else."""
        words = data.decode(errors="surrogateescape").split("\0", 3)
        if len(words) != 4:
            raise ValueError(f"{len(words)} words came, not 4")
        return cls(*words)

    @property
    def of_volume(self) -> str:
        """Returns what the line names or, where it names none, the sender; empty: neither does."""
        return self.volume or self.asked.strip().removeprefix("standfast receive ")


def main(_args: Namespace) -> int:
    """Runs `standfast receiver`, which its socket starts."""
    set_up_log()
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise UsageError(
            "no socket was passed: this is started by systemd (systemctl enable --now "
            "standfast-receive.socket)"
        )
    serve(socket.socket(fileno=FIRST_DESCRIPTOR))


def serve(listener: socket.socket) -> NoReturn:
    """Takes conversations over until killed."""
    _load()
    gc.freeze()  # what is shared with the forked processes stays shared
    Resident(listener).run()


def _load() -> None:
    """Imports what a receive needs, before there is one."""

    assert all((parts, btrfs, consul, pruning, receive))
    "localhost".encode("idna")  # looked up by the first request otherwise


class Resident:
    """Waits for conversations and for their ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._sessions: dict[int, Session] = {}  # by both descriptors
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> NoReturn:
        limit_s = watchdog_s()
        pause_s = None if limit_s is None else limit_s / FED_IN_A_LIMIT
        while True:
            notify("WATCHDOG=1")
            for key, _ in self._selector.select(pause_s):
                session = self._sessions.get(key.fd)
                if key.fd == self._listener.fileno():
                    self._take()
                elif session is None:
                    pass  # it ended with an event before this one
                elif key.fd == session.pidfd:
                    self._reap(session)
                else:
                    self._kill(session)

    def _take(self) -> None:
        connection, _ = self._listener.accept()
        try:
            with _received(connection) as (request, descriptors):
                pid = self._fork(request, connection)
                if pid == 0:
                    _converse(request, descriptors)
        except (OSError, ValueError) as error:
            log.warning("a conversation was not taken over: %s", error)
            connection.close()
            return
        pidfd = os.pidfd_open(pid)
        session = Session(connection, pid, pidfd, request.bound, request.of_volume)
        for descriptor in (connection.fileno(), session.pidfd):
            self._sessions[descriptor] = session
            self._selector.register(descriptor, selectors.EVENT_READ)

    def _fork(self, request: Request, connection: socket.socket) -> int:
        """OSError or ValueError when there is no place, which the other side has been told."""
        try:
            if not self._has_place(request.bound) or self._is_full(request):
                raise ValueError(f"no place is free for {request.bound or 'senders without name'}")
            return os.fork()
        except (OSError, ValueError):
            connection.send(b"\1" + busy(request.bound or None))
            raise

    def _has_place(self, bound: str) -> bool:
        sessions = list(self._sessions.values())  # each is there twice
        of_one = sum(session.bound == bound for session in sessions)
        most = most_of_one(_volumes())
        return len(sessions) // 2 < 2 * most and of_one // 2 < most

    def _is_full(self, request: Request) -> bool:
        """Tells whether this volume has as many conversations of this sender as it may."""
        whose = (request.bound, request.of_volume)
        of_these = sum((one.bound, one.volume) == whose for one in self._sessions.values())
        return of_these // 2 >= MOST_OF_VOLUME  # each is there twice

    def _kill(self, session: Session) -> None:
        """Ends a session whose sender is gone with who handed it over.

        It keeps its place until it has ended: not before its disk answers, where that is sick.
        """
        self._selector.unregister(session.connection)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(session.pidfd, signal.SIGKILL)  # nothing to one that has ended

    def _reap(self, session: Session) -> None:
        """Tells how a session ended that has ended."""
        pid, status = os.waitpid(session.pid, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(session.pidfd)
        with contextlib.suppress(KeyError):  # it was killed
            self._selector.unregister(session.connection)
        for descriptor in (session.connection.fileno(), session.pidfd):
            del self._sessions[descriptor]
        with contextlib.suppress(OSError):
            session.connection.send(bytes([code if 0 <= code < 256 else 1]))
        os.close(session.pidfd)
        session.connection.close()


@contextlib.contextmanager
def _received(connection: socket.socket) -> Iterator[tuple[Request, list[int]]]:
    """Yields the request, and stdin, stdout and stderr.

    OSError or ValueError when there is none: then nobody handed anything over.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user not in (0, os.geteuid()):
        raise ValueError(f"user {user} may not hand a conversation over")
    connection.settimeout(REQUEST_S)
    connection.send(INSTALLED)
    request, descriptors, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    try:
        if len(descriptors) != 3:
            raise ValueError(f"{len(descriptors)} descriptors came, not 3")
        yield Request.parse(request), descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _converse(request: Request, descriptors: list[int]) -> NoReturn:
    """Does in the forked process what `standfast receive` does by itself."""
    code = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(FIRST_DESCRIPTOR, os.sysconf("SC_OPEN_MAX"))
        # What stood there before may have been a file, where these are pipes.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        for name in _NOT_OURS:
            os.environ.pop(name, None)
        os.environ["SSH_ORIGINAL_COMMAND"] = request.asked
        os.environ["SSH_CONNECTION"] = request.connection
        logging.getLogger().handlers.clear()  # they speak to this node's journal
        args = {"volume": request.volume or None, "from": request.bound or None}
        code = run_entry(ENTRY, SimpleNamespace(**args))
        journal.settle()  # what would be done at an exit
    finally:
        os._exit(code)
