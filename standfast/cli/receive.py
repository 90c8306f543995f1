"""`standfast receive` begins here: it hands the conversation to a process that is loaded already.

Loading takes longer than all the rest of a cycle in which nothing changed (110 of 200 ms, and as
much processor time), and a sender waits for it. Invariant: a conversation is handed over before a
byte of it was read, and once; where nobody listens, or another version does, this process has it,
as it would without. One that has no place free, or no time to say so, is `busy`, which ends it
here: whoever comes often enough doesn't get past that process's limits. That it hangs for good is
its service's to end (WatchdogSec=).
"""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

from standfast import __version__

SOCKET = "/run/standfast/receive.sock"
VARIABLE = "STANDFAST_RECEIVE_SOCKET"
"""Another path, for tests; empty: nobody is asked."""
GREETING_S = 10.0
"""A process that the socket just started needs a second of it, also on a slow machine."""
MOST_BYTES = 4096
MOST_ASKED = 500
"""Characters of what sshd was asked for: no command that is one has more."""


def _installed() -> bytes:
    """Names what this process has loaded: the version, and the file as it was installed.

    Two builds of one version are told apart by it: an installer writes the file anew.
    """
    file = os.stat(__file__)  # noqa: PTH116  # pathlib takes as long to load as all of this
    return f"{__version__} {__file__} {file.st_ino} {file.st_mtime_ns}".encode()


INSTALLED = _installed()


def receive(args: SimpleNamespace) -> int:
    """Runs `standfast receive VOLUME --from NODE`."""
    bound = getattr(args, "from")  # the option's name is no name in Python
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    connection = os.environ.get("SSH_CONNECTION", "")
    status = hand_over(
        os.environ.get(VARIABLE, SOCKET), request(args.volume, bound, connection, asked), bound
    )
    if status is not None:
        return status
    from standfast.cli import services

    return services.receive(args)


def request(volume: str | None, bound: str | None, connection: str, asked: str) -> bytes:
    """Returns what is handed over beside the descriptors: what sshd says of the conversation."""
    words = (volume or "", bound or "", connection, asked[:MOST_ASKED])
    return "\0".join(words).encode(errors="surrogateescape")


def hand_over(path: str, request: bytes, bound: str | None) -> int | None:
    """Returns the exit status of the process that took it over; None when none is there."""
    if not path:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(GREETING_S)
        try:
            connection.connect(path)
            # A process from before an upgrade would load modules that are not there any more.
            if connection.recv(MOST_BYTES) != INSTALLED:
                return None
        except (TimeoutError, BlockingIOError):  # many wait before this one, or too many
            return _end(b"\1" + busy(bound))
        except OSError:
            return None
        try:
            socket.send_fds(connection, [request], [0, 1, 2])
            connection.settimeout(None)  # the conversation has deadlines of its own
            return _end(connection.recv(MOST_BYTES))
        except OSError:
            return 1


def busy(bound: str | None) -> bytes:
    """Returns the refusal (`replication.wire`) for one conversation too many."""
    import json  # only where nothing is waited for any more

    text = "as many conversations as this standby has at once are under way: try again"
    doc = {"v": 1, "message_type": "refusal", "reason": "busy", "message": text, "bound": bound}
    return json.dumps(doc).encode() + b"\n"


def _end(answer: bytes) -> int:
    """Passes on what the sender is to be told, and returns the status before it."""
    if answer[1:]:
        os.write(1, answer[1:])
    return answer[0] if answer else 1
