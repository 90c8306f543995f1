"""`standfast receive` begins here: it hands the conversation to a process that is loaded already.

Loading takes longer than all the rest of a cycle in which nothing changed (110 of 200 ms, and as
much processor time), and a sender waits for it. Invariant: a conversation is handed over before a
byte of it was read, and once; where nobody takes it over, this process has it, as it would without.
"""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

from standfast import __version__

SOCKET = "/run/standfast/receive.sock"
VARIABLE = "STANDFAST_RECEIVE_SOCKET"
"""Another path, for tests; empty: nobody is asked."""
GREETING_S = 2.0
"""A process that the socket just started needs a fraction of it."""
MOST_BYTES = 4096


def _installed() -> bytes:
    """Names what this process has loaded: the version, and the file as it was installed.

    Two builds of one version are told apart by it: an installer writes the file anew.
    """
    file = os.stat(__file__)  # noqa: PTH116  # pathlib takes as long to load as all of this
    return f"{__version__} {__file__} {file.st_ino} {file.st_mtime_ns}".encode()


INSTALLED = _installed()


def receive(args: SimpleNamespace) -> int:
    """Runs `standfast receive VOLUME`."""
    status = hand_over(os.environ.get(VARIABLE, SOCKET), args.volume or "")
    if status is not None:
        return status
    from standfast.cli import services

    return services.receive(args)


def hand_over(path: str, volume: str) -> int | None:
    """Returns the exit status of the process that took it over; None when none did."""
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    request = f"{volume}\0{asked}".encode(errors="surrogateescape")
    if not path or len(request) > MOST_BYTES:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(GREETING_S)
        try:
            connection.connect(path)
            # A process from before an upgrade would load modules that are not there any more.
            if connection.recv(MOST_BYTES) != INSTALLED:
                return None
        except OSError:
            return None
        try:
            socket.send_fds(connection, [request], [0, 1, 2])
            connection.settimeout(None)  # the conversation has deadlines of its own
            status = connection.recv(1)
        except OSError:
            status = b""
        return status[0] if status else 1
