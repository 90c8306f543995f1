"""Whether a machine answers at all, and whether its NFS port lets this node in."""

from __future__ import annotations

import socket

PROBE_TIMEOUT_S = 0.4


def answers(address: str, port: int) -> bool:
    """Tells whether the machine at `address` is alive: a refused connection is an answer, too."""
    return _connects(address, port, refused=True)


def answers_nfs(address: str, port: int) -> bool:
    """Tells whether the NFS port of the machine at `address` lets this node in; refused is a no."""
    return _connects(address, port, refused=False)


def _connects(address: str, port: int, *, refused: bool) -> bool:
    """Tells whether a connection is made in time; `refused` is what a refusal counts as."""
    try:
        socket.create_connection((address, port), timeout=PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return refused
    except OSError:
        return False
    return True
