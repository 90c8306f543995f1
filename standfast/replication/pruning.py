"""Deleting old snapshots, of both kinds, on whatever this node is.

Invariants: nothing is deleted unless the pins, the epochs and what transfers at work need could be
read, all under the one lock that they change under. A pin is dropped only here (and by a standby
whose primary names the node no more), never without a word in the log and a mark on the standby,
and never when that would leave no other standby up to date.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from standfast.ages import UNKNOWN
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.lease.files import LeaseStatus
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import Snapshot
from standfast.replication import pins, state
from standfast.replication.pins import Pin
from standfast.replication.ports import ReplicaStore
from standfast.replication.published import clock_was_set_s_ago, origins_of_snapshots
from standfast.replication.retention import Kept, by_epoch, overdue, sort_out
from standfast.system.clock import Deadline, format_utc, instant, monotonic, utc_now

log = logging.getLogger(__name__)

MOST_AT_ONCE = 64
"""So many are deleted under one hold of the lock; the rest goes the next time."""
LOCK_WAIT_S = 10.0
GRACE_S = 86400.0
"""After a shut-down of everything, however long, and after the clock was set, however far, each
standby gets this long to come back."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or with dry_run would go; everything oldest first."""

    deleted: tuple[Snapshot, ...] = ()
    kept: tuple[Kept, ...] = ()
    """What is meant to stay."""
    dropped_pins: tuple[str, ...] = ()
    """Nodes for which nothing is kept any more."""
    left: int = 0
    """So many more may go, the next time."""
    trouble: str | None = None
    """Why nothing, or not all of it, was deleted."""


def prune(
    config: Config,
    store: ReplicaStore,
    *,
    also: Collection[str],
    dry_run: bool = False,
) -> Pruned:
    """Deletes what may go, the oldest first; `also` are content ids that have to stay.

    Doesn't raise for anything that the disk, the files or the store do: see `trouble`.
    """
    try:
        with pins.locked(config, Deadline.after(LOCK_WAIT_S)):
            plan = _look(config, store, also)
            if dry_run:
                return Pruned(plan.old, plan.kept, plan.late)
            _drop_pins(config, plan)
            return _delete(store, plan)
    except (StandfastError, OSError) as error:
        log.warning("old snapshots were not deleted: %s", error)
        return Pruned(trouble=str(error))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to stay and what is to go, by a look at snapshots and pins."""

    pins: Mapping[str, Pin]
    late: tuple[str, ...]
    """Nodes whose pins are to be dropped."""
    kept: tuple[Kept, ...]
    old: tuple[Snapshot, ...]


def _look(config: Config, store: ReplicaStore, also: Collection[str]) -> _Plan:
    noted = pins.load(config)
    known = {**_last_sent(config), **noted}
    snapshots = store.snapshots()
    origins = origins_of_snapshots(config, instant())
    epochs = {content_id: origin.epoch for content_id, origin in origins.items()}
    times = {}
    for snapshot in snapshots:
        origin = origins.get(snapshot.content_id)
        if origin is not None and (at := origin.time(snapshot.name)) != UNKNOWN:
            times[snapshot.content_id] = at
    late = _late(config, known, {snapshot.content_id for snapshot in snapshots})
    counted = {node: pin for node, pin in known.items() if node not in late}
    protected = _pinned(counted, snapshots, epochs)
    for content_id in pins.all_in_use(config):
        protected.setdefault(content_id, []).append("in use")
    for content_id in (*also, *_base(config)):
        protected.setdefault(content_id, []).append("still needed")
    own = [snapshot for snapshot in snapshots if not snapshot.received]
    published = [snapshot for snapshot in snapshots if snapshot.received]
    first = sort_out(own, epochs, protected, config.retention_own, times)
    second = sort_out(published, epochs, protected, config.retention_published, times)
    return _Plan(
        noted,
        late,
        tuple(sorted((*first.kept, *second.kept), key=lambda kept: kept.snapshot.name)),
        tuple(sorted((*first.old, *second.old), key=lambda snapshot: snapshot.name)),
    )


def _last_sent(config: Config) -> dict[str, Pin]:
    """Returns what the memory of the cycles says, for nodes without a pin (the pins were moved
    away).

    It only ever protects, so that an unreadable one is no reason to keep everything.
    """
    try:
        standbys = state.load(config).standbys
    except StandfastError:
        return {}
    pins_by_node = {}
    for node, last in standbys.items():
        if node not in config.standbys or last.needs_full:
            continue
        if last.snapshot is None or last.content_id is None:
            continue
        at = last.last_success_at or 0.0
        pins_by_node[node] = Pin(last.snapshot, last.content_id, last.epoch or 0, at)
    return pins_by_node


def _pinned(
    known: Mapping[str, Pin], snapshots: Sequence[Snapshot], epochs: Mapping[str, int]
) -> dict[str, list[str]]:
    present = {snapshot.content_id for snapshot in snapshots}
    ours = by_epoch((snapshot for snapshot in snapshots if snapshot.content_id in epochs), epochs)
    protected: dict[str, list[str]] = {}
    for node, pin in sorted(known.items()):
        if pin.content_id in present:
            protected.setdefault(pin.content_id, []).append(f"pinned for {node}")
            continue
        # Deleted by hand: the one before it is the likeliest to be common now.
        before = [
            snapshot
            for snapshot in ours
            if (epochs[snapshot.content_id], str(snapshot.name)) <= pin.rank
        ]
        if before:
            why = f"next to {pin.name}, pinned for {node} and gone"
            protected.setdefault(before[-1].content_id, []).append(why)
    return protected


def _base(config: Config) -> tuple[str, ...]:
    """Returns what a promotion at work makes the live tree from."""
    own = OwnEpoch.load(config.state_dir)
    if own is None or own.base_content_id is None:
        return ()
    return (own.base_content_id,) if own.stage in (Stage.CLEARING, Stage.CREATING) else ()


def _late(config: Config, known: Mapping[str, Pin], present: Collection[str]) -> tuple[str, ...]:
    limit_s, utc = config.replication.drop_pin_after, utc_now()
    grace_s = min(limit_s, GRACE_S)
    if clock_was_set_s_ago(config, instant()) <= grace_s:
        return ()  # by how much nobody knows: a year may have passed, or a moment
    gone = {node for node in known if node not in config.nodes and utc - known[node].at > limit_s}
    if not _has_served_for(config, grace_s):
        return tuple(sorted(gone))
    others = {node: pin for node, pin in known.items() if node in config.standbys}
    return tuple(sorted(gone | set(overdue(others, present, utc, limit_s))))


def _has_served_for(config: Config, seconds: float) -> bool:
    lease = LeaseStatus.load(config.run_dir)
    if lease is None or not lease.serving:
        return False
    now = monotonic()
    return lease.remaining_s(now) > 0 and now - lease.since > seconds


def _drop_pins(config: Config, plan: _Plan) -> None:
    for node in plan.late:
        if node in config.standbys:
            pin = plan.pins.get(node)
            since = "" if pin is None else f" since {format_utc(pin.at)} ({pin.name})"
            text = (
                f"{node} took no snapshot in{since}, longer than replication.drop_pin_after "
                f"({config.replication.drop_pin_after:.0f} s): nothing is kept for it any more. "
                f"When it is back: `standfast replicate {node} --full`"
            )
            # First the mark: what happens to a pin must never go unseen.
            state.note_needs_full(config, node, text)
            log.warning("%s", text)
        else:
            log.info("%s is no storage node any more: its pin is dropped", node)
    if plan.late:
        left = {node: pin for node, pin in plan.pins.items() if node not in plan.late}
        pins.save(config, left)


def _delete(store: ReplicaStore, plan: _Plan) -> Pruned:
    now, later = plan.old[:MOST_AT_ONCE], plan.old[MOST_AT_ONCE:]
    done = Pruned(now, plan.kept, plan.late, len(later))
    try:
        store.delete(now)
    except (StandfastError, OSError) as error:
        log.warning("not every old snapshot was deleted: %s", error)
        gone = tuple(snapshot for snapshot in now if not os.path.lexists(snapshot.path))
        left = len(plan.old) - len(gone)
        return replace(done, deleted=gone, left=left, trouble=str(error))
    return done
