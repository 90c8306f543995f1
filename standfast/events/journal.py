"""The only door to the journal's own protocol: events with their fields.

Invariant: nothing here waits for the journal but `settle`, and that not for long: an entry that
can't be handed over at once is not delivered, and its line goes where every other line goes.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from standfast.system.clock import Deadline, sleep

if TYPE_CHECKING:
    from standfast.events.events import Event

SOCKET = "/run/systemd/journal/socket"
VARIABLE = "STANDFAST_JOURNAL"
"""In the environment: another socket; empty: there is no journal (the demo is none of its)."""
SETTLE_S = 0.2
_STDERR = 2
_connection: socket.socket | None = None


def encode(fields: Mapping[str, str]) -> bytes:
    """Encodes the fields as systemd's "Native Journal Protocol" describes it."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def entry(event: Event) -> dict[str, str]:
    """Returns all fields of an event's entry."""
    return {
        "MESSAGE": event.sentence,
        "MESSAGE_ID": event.kind.message_id,
        "PRIORITY": str(event.kind.priority),
        "SYSLOG_IDENTIFIER": Path(sys.argv[0] or "standfast").name,
        **event.fields(),
    }


def deliver(event: Event) -> bool:
    """Hands an event to the journal; False when there is none, or it has no room just now."""
    global _connection  # noqa: PLW0603
    path = os.environ.get(VARIABLE, SOCKET)
    if _connection is None:
        _connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        atexit.register(settle)
    try:
        _connection.sendto(encode(entry(event)), socket.MSG_DONTWAIT, path)
    except OSError:
        return False
    return True


def settle() -> None:
    """Waits until the journal has read what was sent.

    It looks up the sender's unit by its pid: a process that ends at once would have none.
    """
    if _connection is None:
        return
    limit = Deadline.after(SETTLE_S)
    unread = bytearray(4)
    with contextlib.suppress(OSError):
        while not limit.expired:
            fcntl.ioctl(_connection.fileno(), termios.TIOCOUTQ, unread)
            if not int.from_bytes(unread, sys.byteorder):
                return
            sleep(0.001)


def is_stderr() -> bool:
    """Tells whether what is written to stderr goes to the journal anyway (see systemd.exec)."""
    told = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(_STDERR)
    except OSError:
        return False
    return told == f"{status.st_dev}:{status.st_ino}"
