"""What a handler or the resync timer does: make the agent look again. Events carry no orders.

Invariant: what stands on stdin changes nothing. It is read (bounded, so that `consul watch` never
blocks on a full pipe) and thrown away: the agent asks Consul itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys

from standfast.config.model import Config
from standfast.errors import StandfastError, Unreachable
from standfast.system.clock import Deadline
from standfast.system.local_socket import ask

log = logging.getLogger(__name__)

DRAIN_S = 2.0
DRAIN_BYTES = 64 << 20
WAKE_S = 3.0


def drain(fd: int, deadline: Deadline) -> int:
    """Reads `fd` until its end, a bound or the deadline; returns how many bytes went by."""
    count = 0
    with contextlib.suppress(OSError, ValueError):
        while count < DRAIN_BYTES and not deadline.expired:
            ready, _, _ = select.select([fd], [], [], deadline.remaining_s())
            data = os.read(fd, 1 << 16) if ready else b""
            if not data:
                break
            count += len(data)
    return count


def wake(config: Config) -> bool:
    """Makes this node's agent look at once; False when none runs here, or it doesn't answer.

    Never an error: a handler that fails would end its watch, and the agent looks by itself anyway.
    """
    path = config.run_dir / "agent.sock"
    try:
        ask(path, {"v": 1, "command": "wake"}, Deadline.after(WAKE_S))
    except Unreachable as error:
        log.info("no agent to wake on this node: %s", error)
        return False
    except (StandfastError, OSError) as error:
        log.warning("the agent at %s was not woken (%s); it looks again by itself", path, error)
        return False
    return True


def main(config: Config, event: str | None = None) -> int:
    """Runs `standfast reconcile`: 0 in every case but a broken configuration."""
    if event is not None and sys.stdin is not None and not sys.stdin.closed:
        drain(sys.stdin.fileno(), Deadline.after(DRAIN_S))
    wake(config)
    return 0
