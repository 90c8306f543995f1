"""Every way in which a replication fails has a reason code: said to the peer, counted, shown."""

from __future__ import annotations

import errno

from standfast.consul.blindness import blindness
from standfast.errors import (
    CommandFailed,
    ConsulError,
    ForeignValue,
    NeedsRoot,
    NotRunning,
    Refused,
    TimedOut,
    Unreachable,
    is_lack_of,
)
from standfast.reasons import Reason

_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (ForeignValue, Reason.FOREIGN_VALUE),
    (TimedOut, Reason.DEADLINE),
    (NotRunning, Reason.NOT_RUNNING),
    (NeedsRoot, Reason.NEEDS_ROOT),
    (Unreachable, Reason.REPLICATION_FAILED),
    (CommandFailed, Reason.REPLICATION_FAILED),
)


def reason_of(error: Exception) -> Reason:
    """Returns the reason code of a failure; UNEXPECTED for what is not one of ours."""
    if isinstance(error, Refused):
        return error.reason
    if isinstance(error, ConsulError):
        return blindness(error).reason
    if lacks_space(error):
        return Reason.NO_SPACE
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.UNEXPECTED)


def lacks_space(error: Exception) -> bool:
    """Tells whether there was no space, whatever the file system says is free: that of btrfs'
    metadata is another, and a quota may be less."""
    return is_lack_of(error, errno.ENOSPC, errno.EDQUOT)
