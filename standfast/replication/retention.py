"""Which snapshots may go: pure.

Invariants: nothing goes that may be the newest common snapshot of this node and another one: with
it goes the chance of an increment, and the next replication would have to send everything. The
newest snapshot of each epoch stays: when that epoch's primary is lost, it is the only copy of what
its successor never had. What Standfast didn't make is not its to delete. However often they are
taken, the number of snapshots kept is bounded: keep_last, the grid, one for each epoch and what is
protected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.config.model import Keep
from standfast.node.ports import Snapshot
from standfast.replication.pins import Pin
from standfast.system.clock import format_stamp


@dataclass(frozen=True, slots=True)
class Kept:
    """Holds a snapshot that stays, and every pin and rule that keeps it."""

    snapshot: Snapshot
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SortedOut:
    """Both oldest first."""

    kept: tuple[Kept, ...]
    old: tuple[Snapshot, ...]


def sort_out(
    snapshots: Sequence[Snapshot],
    epochs: Mapping[str, int],
    protected: Mapping[str, Sequence[str]],
    keep: Keep,
    times: Mapping[str, float] | None = None,
) -> SortedOut:
    """Says what stays and what may go, of snapshots of one kind (own, or published).

    `epochs` names what Standfast made (content id -> epoch), `protected` says for each content id
    that has to stay why, `times` when it was taken, as far as that is known beside its name.
    """
    reasons: dict[Path, list[str]] = {
        snapshot.path: list(protected.get(snapshot.content_id, ())) for snapshot in snapshots
    }
    for snapshot in snapshots:
        if snapshot.content_id not in epochs:
            reasons[snapshot.path].append("not made by Standfast")
    ours = by_epoch((snapshot for snapshot in snapshots if snapshot.content_id in epochs), epochs)
    for epoch, snapshot in {epochs[snapshot.content_id]: snapshot for snapshot in ours}.items():
        reasons[snapshot.path].append(f"newest of epoch {epoch}")
    newest = max(1, keep.keep_last)
    for snapshot in ours[-newest:]:
        reasons[snapshot.path].append(f"among the newest {newest}" if newest > 1 else "newest")
    for what, period in _PERIODS.items():
        for snapshot in _last_of_each(ours, times or {}, period, getattr(keep, what)):
            reasons[snapshot.path].append(what)
    by_time = sorted(snapshots, key=lambda snapshot: snapshot.name)
    kept = [snapshot for snapshot in by_time if reasons[snapshot.path]]
    return SortedOut(
        tuple(Kept(snapshot, tuple(reasons[snapshot.path])) for snapshot in kept),
        tuple(snapshot for snapshot in by_time if not reasons[snapshot.path]),
    )


def by_epoch(snapshots: Iterable[Snapshot], epochs: Mapping[str, int]) -> list[Snapshot]:
    """Sorts snapshots, best last: by the epoch they come from, then by time. All of them have an
    epoch."""
    return sorted(snapshots, key=lambda snapshot: (epochs[snapshot.content_id], snapshot.name))


def overdue(
    pins: Mapping[str, Pin], present: Collection[str], utc: float, limit_s: float
) -> tuple[str, ...]:
    """Returns the nodes that took nothing in for `limit_s`, whose pins may go.

    None as long as no other node is known to be up to date (`present`: content ids here): the
    trouble may be on this side, and some standby must be left that can go on by increments.
    """
    late = {node for node, pin in pins.items() if utc - pin.at > limit_s}
    if not any(pin.content_id in present for node, pin in pins.items() if node not in late):
        return ()
    return tuple(sorted(late))


def _last_of_each(
    ours: Sequence[Snapshot],
    times: Mapping[str, float],
    period: Callable[[float], object],
    count: int,
) -> list[Snapshot]:
    """Returns the last snapshot of each of the newest `count` periods that have any.

    Periods without a snapshot don't count: what is kept doesn't dwindle while nothing is taken. As
    in `ours`, epochs come first, then names: those of a clock that was a year ahead don't keep a
    later epoch's out. The hours are the clock's, or it would have had all of that year in one.
    """
    newest_first: dict[object, Snapshot] = {}
    for snapshot in reversed(ours):
        at = times.get(snapshot.content_id, snapshot.name.stamp)
        newest_first.setdefault(period(at), snapshot)
    return list(newest_first.values())[:count]


def _hour(utc: float) -> int:
    return int(utc // 3600)


def _day(utc: float) -> int:
    return int(utc // 86400)


def _week(utc: float) -> int:
    """From Monday; the first of January 1970 was a Thursday."""
    return (_day(utc) + 3) // 7


def _month(utc: float) -> str:
    return format_stamp(utc)[: len("YYYYMM")]


# Of UTC: neither zones nor daylight saving move anything.
_PERIODS: Mapping[str, Callable[[float], object]] = {
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
}
