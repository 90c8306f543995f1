"""Why Consul cannot be read, as an observation."""

from __future__ import annotations

from dataclasses import dataclass

from standfast.errors import (
    ConsulDenied,
    ConsulError,
    ConsulGarbled,
    ConsulLimited,
    ConsulNoQuorum,
    ConsulTimedOut,
)
from standfast.reasons import Reason


@dataclass(frozen=True, slots=True)
class Blind:
    """Consul can't be read, or holds what can't be understood."""

    reason: Reason
    sentence: str


_REASONS: tuple[tuple[type[ConsulError], Reason], ...] = (
    (ConsulTimedOut, Reason.CONSUL_TIMEOUT),
    (ConsulNoQuorum, Reason.CONSUL_NO_QUORUM),
    (ConsulLimited, Reason.CONSUL_LIMITED),
    (ConsulDenied, Reason.CONSUL_DENIED),
    (ConsulGarbled, Reason.CONSUL_GARBLED),
)


def blindness(error: ConsulError) -> Blind:
    """Returns a failed read as an observation."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return Blind(reason, str(error))
    return Blind(Reason.CONSUL_UNREACHABLE, str(error))
