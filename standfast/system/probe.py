"""Connections that are made by a deadline, whatever a name server and the other side do.

So it is seen whether a machine answers at all, and whether its NFS port lets this node in.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from functools import partial
from pathlib import Path
from typing import Any

from standfast.errors import TimedOut
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of
from standfast.system.threads import Question

PROBE_TIMEOUT_S = 0.4
LISTEN = "0A"
"""TCP_LISTEN, as /proc/net/tcp writes it."""


def answers(address: str, port: int) -> bool:
    """Tells whether the machine at `address` is alive: a refused connection is an answer, too."""
    return _connects(address, port, Deadline.after(PROBE_TIMEOUT_S), refused=True)


def lets_in(address: str, port: int, deadline: Deadline) -> bool:
    """Tells whether the port of the machine at `address` lets this node in; refused is a no."""
    return _connects(address, port, deadline, refused=False)


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Returns a connection to the first of the name's addresses that takes one; OSError, which is a
    TimeoutError at the deadline."""
    last = OSError("the name has no address")
    for family, address in _resolve(host, port, deadline):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            left_s = deadline.remaining_s()
            if left_s <= 0:
                raise TimeoutError("deadline")
            sock.settimeout(left_s)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


def _resolve(host: str, port: int, deadline: Deadline) -> list[tuple[int, Any]]:
    try:
        flags = socket.AI_NUMERICHOST
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        return [(family, address) for family, _, _, _, address in answers]
    except socket.gaierror:
        return _resolve_name(host, port, deadline)
    except (ValueError, OverflowError) as error:  # NUL in a name, a port that is none
        raise OSError(f"the address is none: {error}") from error


def _resolve_name(host: str, port: int, deadline: Deadline) -> list[tuple[int, Any]]:
    """The resolver has no deadline of its own: it gets a thread, left behind when it hangs."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        answers = Question(f"resolve {host}", look_up).answer(deadline)
    except TimedOut as error:
        raise TimeoutError(f"resolving {host}") from error
    except (OSError, ValueError) as error:
        raise OSError(f"the name can't be resolved: {error}") from error
    return [(family, address) for family, _, _, _, address in answers]


def listening(port: int, net: Path = Path("/proc/self/net")) -> bool:
    """Tells whether any program of this network namespace listens at a TCP port; OSError."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in lines_of(read_foreign_text(net / table))[1:]:
                fields = fields_of(line)
                at = fields[1].rpartition(":")[2] if len(fields) > 3 else "0"
                if fields[3:4] == [LISTEN] and int(at, 16) == port:
                    return True
    return False


def _connects(address: str, port: int, deadline: Deadline, *, refused: bool) -> bool:
    """Tells whether a connection is made in time; `refused` is what a refusal counts as."""
    try:
        connect(address, port, deadline).close()
    except ConnectionRefusedError:
        return refused
    except OSError:
        return False
    return True


def source_to(address: str) -> str | None:
    """Returns the own address by which this machine goes to an IP address; None: there is no way.

    Nothing is sent: the kernel's table of routes says it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((address, 9))
            return str(asked.getsockname()[0])
    except OSError:
        return None


def is_ours(address: str) -> bool:
    """Tells whether this machine has the address, or it is a wildcard; in doubt it has."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True
