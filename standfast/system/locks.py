"""Locks that end with their holder: flock on files under /run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.system.clock import Deadline, sleep

POLL_S = 0.05


@contextlib.contextmanager
def exclusive(path: Path, holder: str, deadline: Deadline | None = None) -> Iterator[int]:
    """Holds the lock at `path`; Refused (busy), naming `holder`, when it isn't free in time.

    The value is its descriptor, for `run.inheriting`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is None or deadline.expired:
                    raise Refused(
                        Reason.BUSY, f"{holder} is at work (lock {path}); try again when it is done"
                    ) from None
                sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Tells whether a process holds the lock at `path` (see locks.exclusive)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
