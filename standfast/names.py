"""Names of snapshots and of subvolumes kept aside.

Only the UTC time in a snapshot's name is true (mtime, otime and send time all mislead), so a name
that can't be parsed, or lies in the future, never counts as the newest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from standfast.clock import format_stamp, parse_stamp

# A name ahead of this machine's clock by more than this is not believed, seconds.
FUTURE_TOLERANCE_S = 60.0
_SNAPSHOT = re.compile(r"(?P<volume>[A-Za-z0-9][A-Za-z0-9_.-]*)@(?P<stamp>[0-9]{8}T[0-9]{6}Z)")
_ASIDE = re.compile(
    r".+\.(?P<kind>diverged|retired)-(?P<epoch>[0-9]{1,15})-(?P<stamp>[0-9]{8}T[0-9]{6}Z)"
)


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """`services@20261122T101500Z`; ordered by time, then by base name."""

    taken_at: float
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
        return f"{self.base}@{format_stamp(self.taken_at)}"

    def is_in_the_future(self, utc_now: float) -> bool:
        return self.taken_at > utc_now + FUTURE_TOLERANCE_S


def diverged_name(base: str, epoch: int, seconds: float) -> str:
    """Where data goes that a primary of `epoch` wrote and its successor never had."""
    return f"{base}.diverged-{epoch}-{format_stamp(seconds)}"


def retired_name(base: str, epoch: int, seconds: float) -> str:
    """Where the tree of an orderly demotion goes: its final snapshot has the same content."""
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
