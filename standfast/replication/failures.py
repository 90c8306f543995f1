"""Every way in which a replication fails has a reason code: said to the peer, counted, shown."""

from __future__ import annotations

import errno

from standfast.errors import (
    CommandFailed,
    ConsulDenied,
    ConsulError,
    ConsulGarbled,
    ConsulNoQuorum,
    ConsulTimedOut,
    ForeignValue,
    Refused,
    TimedOut,
    Unreachable,
    is_lack_of,
)
from standfast.reasons import Reason

_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (ConsulTimedOut, Reason.CONSUL_TIMEOUT),
    (ConsulNoQuorum, Reason.CONSUL_NO_QUORUM),
    (ConsulDenied, Reason.CONSUL_DENIED),
    (ConsulGarbled, Reason.CONSUL_GARBLED),
    (ConsulError, Reason.CONSUL_UNREACHABLE),
    (ForeignValue, Reason.FOREIGN_VALUE),
    (TimedOut, Reason.DEADLINE),
    (Unreachable, Reason.REPLICATION_FAILED),
    (CommandFailed, Reason.REPLICATION_FAILED),
)


def reason_of(error: Exception) -> Reason:
    """UNEXPECTED for what is not one of ours."""
    if isinstance(error, Refused):
        return error.reason
    if is_lack_of(error, errno.ENOSPC, errno.EDQUOT):
        return Reason.NO_SPACE
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.UNEXPECTED)
