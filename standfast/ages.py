"""How old a snapshot is, by times that may have come from a wrong clock: pure.

Invariants: an age is never negative and never flatters. What was taken or received since this
machine started counts by its uptime, which nobody sets: no clock has a say in it, neither its own
nor that of the primary, whose names may be hours behind. What was there before counts by what the
clock said then, and by the latest that it ever said (`Seen`); of that and of the stamp in the name
the older one counts. A time that lies in the future all the same is no time: the age is not known
(None), and whoever has a limit takes that for beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

from standfast.clock import Instant
from standfast.names import SnapshotName

FUTURE_TOLERANCE_S = 10.0
"""Two nodes' clocks that agree may differ by so much; an alert speaks of more."""

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
    """By this machine's uptime: no clock has a say in it."""

    def time(self, name: SnapshotName) -> float:
        """When it was taken, UTC seconds by this node's clock as it is now."""
        at = self.taken_at
        return at if self.counted and at is not None else time_of(name, at)


@dataclass(frozen=True, slots=True)
class Seen:
    """This machine's clocks when they were last looked at."""

    at: Instant
    floor: float | None = None
    """UTC seconds that the wall clock had reached, or passed, before this machine started."""
    set_up: float | None = None
    """Uptime when the wall clock was last found to have been set; None: not since this start."""

    def latest(self) -> float:
        """The time that it is at least, by the wall clock as it was before this start: a clock that
        is behind that one was set back."""
        return self.at.utc if self.floor is None else max(self.at.utc, self.floor + self.at.up)

    def going_on(self, now: Instant) -> Seen:
        """With another look; `now` may be after a start of the machine."""
        if now.boot != self.at.boot:
            return Seen(now, self.latest())
        was_set = abs(self.set_by(now)) > WAS_SET_S
        return Seen(now, self.floor, now.up if was_set else self.set_up)

    def set_by(self, now: Instant) -> float:
        """Seconds by which the wall clock was set since, by the uptime; of the same start."""
        return (now.utc - now.up) - (self.at.utc - self.at.up)

    def by_clock(self, utc: float) -> float:
        """UTC seconds, by the clock as it is now, of a moment before this start, that was noted as
        `utc`."""
        return self.at.utc - (self.latest() - utc)


def time_of(name: SnapshotName, *taken_at: float | None) -> float:
    """The older of what its name says and what is known beside it, UTC seconds."""
    return min([name.stamp, *(at for at in taken_at if at is not None)])


def age_of(at: float | None, utc: float) -> float | None:
    """Seconds since `at`; None: not known, or `at` lies in the future."""
    if at is None or at > utc + FUTURE_TOLERANCE_S:
        return None
    return max(0.0, utc - at)
