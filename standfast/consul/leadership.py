"""Keeps Consul's leadership away from the node that serves: one death is then no election as well.

Invariant: at most one transfer in AGAIN_S, whatever comes of it: each one stalls all writes for a
moment, those of the lease among them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from standfast.errors import StandfastError
from standfast.system.clock import monotonic

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
AGAIN_S = 600.0


@dataclass(slots=True)
class Leadership:
    """Remembers what was done, and for how long nothing more is."""

    look_at: float = float("-inf")
    quiet_until: float = float("-inf")
    """Monotonic s: when to look next, and until when nothing is transferred."""
    failure: StandfastError | None = None
    """Of the last transfer, as long as this node's agent goes on leading."""

    def give_away(self, is_leader: Callable[[], bool], transfer: Callable[[], None]) -> None:
        """Transfers the leadership if this node's agent has it (both are the gateway's);
        ConsulError, also of the last attempt."""
        now = monotonic()
        if now >= self.look_at:
            self.look_at = now + LOOK_EVERY_S
            if not is_leader():
                self.failure = None
            elif now >= self.quiet_until:
                self.quiet_until = now + AGAIN_S
                self.failure = _failure_of(transfer)
        if self.failure is not None:
            raise self.failure.with_traceback(None)


def _failure_of(transfer: Callable[[], None]) -> StandfastError | None:
    try:
        transfer()
    except StandfastError as error:
        return error
    log.info("Consul is led by another server now")
    return None
