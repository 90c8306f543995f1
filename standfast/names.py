"""Names of snapshots and of subvolumes kept aside.

Invariant: a name says what it comes after. Its stamp is the wall clock's time where that is later
than every name known before, and else one second more than the latest of those: within a history
the order of the stamps is the order in which the snapshots were taken, whatever the clocks did
meanwhile. How old a snapshot is, is another question: see `ages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from standfast.system.clock import format_stamp, parse_stamp

STEP_S = 1.0
"""Between a name and the next one: what is written is whole seconds."""
MOST_AHEAD_S = 100 * 366 * 86400.0
"""A name that lies further ahead was made by hand, and is no reason to go on from there."""
_SNAPSHOT = re.compile(r"(?P<volume>[A-Za-z0-9][A-Za-z0-9_.-]*)@(?P<stamp>[0-9]{8}T[0-9]{6}Z)")
_ASIDE = re.compile(
    r".+\.(?P<kind>diverged|retired)-(?P<epoch>[0-9]{1,15})-(?P<stamp>[0-9]{8}T[0-9]{6}Z)"
)


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """`services@20261122T101500Z`; ordered by its stamp, then by base name."""

    stamp: float
    """UTC seconds, as the order has it; the clock may have said less."""
    base: str

    @classmethod
    def at(cls, base: str, seconds: float) -> SnapshotName:
        return cls(float(int(seconds)), base)

    @classmethod
    def parse(cls, text: str) -> SnapshotName:
        """ValueError when the text is not exactly a snapshot's name."""
        match = _SNAPSHOT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a snapshot name like services@20261122T101500Z")
        return cls(parse_stamp(match["stamp"]), match["volume"])

    def __str__(self) -> str:
        return f"{self.base}@{format_stamp(self.stamp)}"

    def after(self, others: Iterable[SnapshotName]) -> SnapshotName:
        """This name, or the next one after the latest of `others` where that is later."""
        latest = max((other.stamp + STEP_S for other in others), default=self.stamp)
        return SnapshotName(max(self.stamp, latest), self.base)

    def after_found(self, others: Iterable[SnapshotName]) -> SnapshotName:
        """The same, of names that anybody may have made."""
        return self.after(other for other in others if other.stamp - self.stamp <= MOST_AHEAD_S)


def diverged_name(base: str, epoch: int, seconds: float) -> str:
    """Returns where data goes that a primary of `epoch` wrote and its successor never had."""
    return f"{base}.diverged-{epoch}-{format_stamp(seconds)}"


def retired_name(base: str, epoch: int, seconds: float) -> str:
    """Returns where the tree of an orderly demotion goes: its final snapshot has the same
    content."""
    return f"{base}.retired-{epoch}-{format_stamp(seconds)}"


@dataclass(frozen=True, slots=True)
class Aside:
    """What the name of a tree that was kept aside says."""

    kind: str
    """`diverged` or `retired`."""
    epoch: int
    at: float
    """UTC seconds."""


def parse_aside(text: str) -> Aside | None:
    """None for any other name."""
    match = _ASIDE.fullmatch(text)
    if match is None:
        return None
    try:
        return Aside(match["kind"], int(match["epoch"]), parse_stamp(match["stamp"]))
    except ValueError:
        return None
