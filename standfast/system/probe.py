"""Whether a machine answers at all, and whether its NFS port lets this node in."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of

PROBE_TIMEOUT_S = 0.4
LISTEN = "0A"
"""TCP_LISTEN, as /proc/net/tcp writes it."""


def answers(address: str, port: int) -> bool:
    """Tells whether the machine at `address` is alive: a refused connection is an answer, too."""
    return _connects(address, port, refused=True)


def answers_nfs(address: str, port: int) -> bool:
    """Tells whether the NFS port of the machine at `address` lets this node in; refused is a no."""
    return _connects(address, port, refused=False)


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


def _connects(address: str, port: int, *, refused: bool) -> bool:
    """Tells whether a connection is made in time; `refused` is what a refusal counts as."""
    try:
        socket.create_connection((address, port), timeout=PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return refused
    except OSError:
        return False
    return True


def is_ours(address: str) -> bool:
    """Tells whether this machine has the address, or it is a wildcard; in doubt it has."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True
