"""Whether a machine answers at all, and whether its NFS port lets this node in."""

from __future__ import annotations

import socket

PROBE_TIMEOUT_S = 0.4


def answers(address: str, port: int) -> bool:
    """Whether the machine at `address` is alive: a refused connection is an answer, too."""
    try:
        socket.create_connection((address, port), timeout=PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def answers_nfs(address: str, port: int) -> bool:
    """Whether the NFS port of the machine at `address` lets this node in; refused is a no."""
    try:
        socket.create_connection((address, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
