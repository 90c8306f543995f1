"""The only module that knows time.

Leases and deadlines are measured on this machine's monotonic clock; no two machines' clocks are
ever compared for safety. Wall-clock time appears only in names, records and messages.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from standfast.errors import TimedOut

STAMP_FORMAT = "%Y%m%dT%H%M%SZ"
FIRST_PROCESS = Path("/proc/1/stat")
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")


def monotonic() -> float:
    """Returns the seconds on CLOCK_MONOTONIC: shared by all processes of this boot, never set
    back."""
    return time.monotonic()


def up() -> float:
    """Returns the seconds on CLOCK_BOOTTIME: `monotonic` that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def sleep(seconds: float) -> None:
    """Sleeps; a negative length returns at once."""
    if seconds > 0:
        time.sleep(seconds)


def utc_now() -> float:
    """Returns the wall-clock seconds since the epoch, for records and messages only."""
    return time.time()


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment on the clocks of this machine."""

    utc: float
    up: float
    """Seconds since the machine started, those that it slept among them; nobody sets it."""
    boot: str = ""
    """Which start that was, where it is known."""


def instant() -> Instant:
    """Returns what this machine's clocks say now."""
    return Instant(utc_now(), time.clock_gettime(time.CLOCK_BOOTTIME) - started_at(FIRST_PROCESS))


@cache
def started_at(process: Path) -> float:
    """Returns when that process started, on CLOCK_BOOTTIME. The first one of a container starts
    long after the kernel, whose clock it has."""
    # The name before it may hold anything.
    fields = process.read_bytes().rpartition(b") ")[2].split(b" ")
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def format_stamp(seconds: float) -> str:
    """Returns UTC time as `20261122T101500Z`: it sorts as text in the order of time."""
    when = datetime.fromtimestamp(seconds, UTC)
    # strftime writes a year before 1000 with fewer digits on Linux: it wouldn't be read again.
    return f"{when.year:04}{when:%m%dT%H%M%SZ}"


def parse_stamp(text: str) -> float:
    """Returns the seconds since the epoch of a `20261122T101500Z`; ValueError for anything else."""
    # strptime would be ten times as slow and take missing zeros; a scrape reads thousands.
    if _STAMP.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not of the form {STAMP_FORMAT}")
    day = int(text[:4]), int(text[4:6]), int(text[6:8])
    return datetime(
        *day, int(text[9:11]), int(text[11:13]), int(text[13:15]), tzinfo=UTC
    ).timestamp()


def parse_rfc3339(text: str) -> float:
    """Returns the seconds since the epoch of a `2026-11-22T14:46:17.246234081Z`; ValueError for
    others."""
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return parsed.timestamp()


def format_utc(seconds: float) -> str:
    """Returns wall-clock seconds as people read them: `2026-11-22 10:15:00 UTC`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock by which something has to be over."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(monotonic() + seconds)

    def remaining_s(self) -> float:
        """Returns the seconds left, never negative."""
        return max(0.0, self.at - monotonic())

    @property
    def expired(self) -> bool:
        return monotonic() >= self.at

    def check(self, what: str) -> None:
        """Raises TimedOut, naming `what`, when the deadline has passed."""
        if self.expired:
            raise TimedOut(f"{what}: the deadline passed")

    def within(self, seconds: float) -> Deadline:
        """Returns the earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, monotonic() + seconds))
