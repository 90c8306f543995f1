"""How old a snapshot is, by times that may have come from a wrong clock: pure.

Invariants: an age is never negative and flatters by no more than a time that the machine was off or
stood still and its clock doesn't know of. What was taken or received since this machine started
counts by its uptime, which nobody sets: not by the primary's clock, and a clock that is set back
makes nothing younger. One that is set forward may make it older, as it does after the pause of a
virtual machine, of which the uptime knows nothing. What was there before (`Before`) counts by the
clock, unless that is behind what it said then: how long the machine was off, nobody knows. Of that
and of the stamp in the name the older one counts. A time that lies in the future all the same is no
time: the age is not known (None), and whoever has a limit takes that for beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from standfast.names import SnapshotName
from standfast.system.clock import Instant

FUTURE_TOLERANCE_S = 10.0
"""Two nodes' clocks that agree may differ by so much; an alert speaks of more."""

UNKNOWN = math.inf
"""A time of which nothing is known, whatever the name says; `age_of` tells no age."""

WAS_SET_S = 1.0
"""A wall clock that moved by more than that against the uptime was set."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a snapshot comes from."""

    epoch: int
    """Of the primary that took it."""
    taken_at: float | None = None
    """When it was taken, UTC seconds by this node's clock as it is now; None: noted by an older
    version, which knew of nothing but the name."""
    counted: bool = False
    """By this machine's uptime: the name has no say in it."""

    def time(self, name: SnapshotName) -> float:
        """Returns when it was taken, UTC seconds by this node's clock as it is now, or UNKNOWN."""
        at = self.taken_at
        if at is not None and (self.counted or at == UNKNOWN):
            return at
        return time_of(name, at)


@dataclass(frozen=True, slots=True)
class Seen:
    """This machine's clocks when they were last looked at."""

    at: Instant
    set_up: float | None = None
    """Uptime when the wall clock was last found to have been set; None: not since this start."""

    def going_on(self, now: Instant) -> Seen:
        """With another look; `now` may be after a start of the machine."""
        if now.boot != self.at.boot:
            return Seen(now)
        was_set = abs(self.set_by(now)) > WAS_SET_S
        return Seen(now, now.up if was_set else self.set_up)

    def set_by(self, now: Instant) -> float:
        """Seconds by which the wall clock was set since, by the uptime; of the same start."""
        return (now.utc - now.up) - (self.at.utc - self.at.up)


@dataclass(frozen=True, slots=True)
class Before:
    """A time that was noted before the last start of the machine.

    Each has its own floor: a clock that was ahead once has no say in what is noted after that.
    """

    at: float
    """UTC seconds by the clock as it was then."""
    floor: float
    """UTC seconds that the wall clock had reached, or passed, since then, before this start."""

    def time(self, now: Instant) -> float:
        """UTC seconds by the clock as it is now; UNKNOWN while that is behind what it was."""
        behind_s = self.floor + now.up - now.utc
        if behind_s > FUTURE_TOLERANCE_S:
            return UNKNOWN
        return self.at - max(0.0, behind_s)

    def over_start(self, last: Instant) -> Before:
        """The machine started again; `last` is the last look before that."""
        return Before(self.at, max(last.utc, self.floor + last.up))


def time_of(name: SnapshotName, *taken_at: float | None) -> float:
    """Returns the older of what its name says and what is known beside it, UTC seconds."""
    return min([name.stamp, *(at for at in taken_at if at is not None)])


def time_by_record(at: float, written_at: float, utc: float) -> float:
    """`at`, by the clock of another node, which wrote it down at `written_at`.

    As right as that clock is; UNKNOWN when `at` lies after `written_at`, or that in the future: one
    of the clocks was wrong then.
    """
    then, since = age_of(at, written_at), age_of(written_at, utc)
    return UNKNOWN if then is None or since is None else at


def age_of(at: float | None, utc: float) -> float | None:
    """Seconds since `at`; None: not known, or `at` lies in the future."""
    if at is None or at > utc + FUTURE_TOLERANCE_S:
        return None
    return max(0.0, utc - at)
