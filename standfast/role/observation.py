"""What a node knows at one moment, as frozen values; nothing here decides or acts.

A candidate's knowledge of the primary is a value and a time of its own clock: the last heartbeat's
identity and when this node first saw it. Indexes are only compared to notice a restored Consul.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from standfast.ages import age_of
from standfast.consul.records import HistoryEntry, Hold, Leader, Pause, StandbyRecord
from standfast.lease.files import LeaseStatus
from standfast.lease.surrender import Sign
from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.own_epoch import OwnEpoch
from standfast.node.ports import Snapshot

Identity = tuple[int, str, str, int]


@dataclass(frozen=True, slots=True)
class LastHeartbeat:
    """The last heartbeat (None: no such key) and since when it has been seen unchanged, by a node
    that was looking all the time."""

    identity: Identity | None
    index: int
    first_seen: float
    """Monotonic seconds of this node."""
    unchanged_since: float | None = None
    """The same, by a node that may not have looked for a while; None: `first_seen`. It is evidence,
    and no proof."""
    witnessed: bool = False
    """It followed, while this node was looking, upon an earlier heartbeat of the same epoch: a
    backup of Consul that was restored doesn't look like that."""

    @property
    def evident_since(self) -> float:
        return self.first_seen if self.unchanged_since is None else self.unchanged_since


def heartbeat_seen(
    previous: LastHeartbeat | None,
    identity: Identity | None,
    index: int,
    now: float,
    unbroken_since: float = float("-inf"),
) -> LastHeartbeat:
    """Returns the last heartbeat after a read that showed `identity` at `index`.

    The time starts again with a new value, and with an index that goes back: Consul was restored
    then, and what was seen before says nothing any more. `unbroken_since` (monotonic seconds): from
    when on this node was looking without a gap.
    """
    if previous is None or index < previous.index:
        return LastHeartbeat(identity, index, now)
    if previous.identity != identity:
        gapless = unbroken_since <= previous.first_seen
        return LastHeartbeat(
            identity, index, now, witnessed=gapless and _follows(previous, identity)
        )
    return replace(previous, index=index)


def _follows(previous: LastHeartbeat, identity: Identity | None) -> bool:
    """Tells whether it is a later heartbeat of the epoch whose heartbeat was seen before."""
    before = previous.identity
    if before is None or identity is None:
        return False
    return identity[:3] == before[:3] and identity[3] > before[3]


@dataclass(frozen=True, slots=True)
class Beginning:
    """When this node first saw the current epoch."""

    epoch: int | None
    first_seen: float
    """Monotonic seconds of this node."""
    witnessed: bool = False
    """It saw another one right before: that is when the epoch began."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What Consul shows, and what this node knows of the primary beyond it."""

    epoch: int | None
    leader: Leader | None
    last_heartbeat: LastHeartbeat
    pause: Pause | None = None
    history: Mapping[int, HistoryEntry] = field(default_factory=dict)
    standbys: Mapping[str, StandbyRecord] = field(default_factory=dict)
    words: Mapping[str, Sign] = field(default_factory=dict)
    """What the candidates say of themselves; a `Watcher` knows which of them still speaks."""
    highest_epoch: int = 0
    """The highest epoch that any of the volume's keys tells of; above `epoch` when that was deleted
    or set back by hand."""
    readable_since: float = float("-inf")
    """Since when (monotonic) every read of Consul has succeeded here."""
    holder_health: str = "unknown"
    """serfHealth of the holder's node: passing, critical, absent, unknown."""
    holder_unanswered_s: float = 0.0
    """For how long the holder's node has answered none of this node's probes."""
    alive: frozenset[str] = frozenset()
    """Nodes that gossip takes for alive."""
    beginning: Beginning | None = None
    """A `Watcher` looks for it; None: keys that were merely put together (`watcher.assemble`)."""
    named: str | None = None
    """What Consul's agent on this node is called; None: not known."""
    holds: Mapping[str, Hold] = field(default_factory=dict)
    """By node."""

    @property
    def given_up(self) -> bool:
        """Tells whether the current epoch, as far as Consul knows, ended in order."""
        return self.leader is not None and self.leader.gives_up(self.epoch)

    @property
    def nobody_serves(self) -> bool:
        """Tells whether it ended in order while this node was looking, so that there is nothing to
        wait for. One that was merely found may be of a restored Consul, which has forgotten a
        successor."""
        return self.given_up and self.last_heartbeat.witnessed

    @property
    def unused(self) -> HistoryEntry | None:
        """Returns the current epoch, where it was given up without ever having served: nobody wrote
        in it, so that what its base lacks of the epoch before is not lost yet.

        One that hands over a snapshot of its own may have gone on in its own tree, which has more
        than its base.
        """
        leader = self.leader
        if leader is None or not self.given_up or not leader.idle:
            return None
        history_entry = self.history.get(leader.epoch)
        return (
            history_entry
            if history_entry is not None and leader.final in (None, history_entry.base)
            else None
        )


@dataclass(frozen=True, slots=True)
class Available:
    """A complete snapshot on this node and the epoch that it was taken in."""

    snapshot: Snapshot
    epoch: int
    taken_at: float | None = None
    """When it was taken, UTC seconds by this node's clock; None: only its name tells."""
    ahead: bool = False
    """Only its name tells, which lies in the future: of an older version whose clock was ahead, so
    that it isn't known what it comes after."""

    def age_s(self, utc: float) -> float | None:
        """Returns its age in seconds, at least so many; None: not known."""
        at = self.snapshot.name.stamp if self.taken_at is None else self.taken_at
        return age_of(at, utc)


@dataclass(frozen=True, slots=True)
class Local:
    """What this node knows of itself."""

    node: str
    instance: str
    highest_epoch: int
    """The highest epoch ever seen here; 0: none."""
    own: OwnEpoch | None = None
    lease: LeaseStatus | None = None
    lease_alive: bool = False
    """A lease process holds the lease's lock."""
    snapshots: tuple[Available, ...] = ()
    has_live: bool = False
    """There is a tree at the live path; once this node had an epoch: that one's."""
    live_is_empty: bool = False
    """It has nothing but directories; looked at only before this node has seen any epoch."""
    copies: tuple[Path, ...] = ()
    """Trees with data in them, where snapshots and what was put aside lie: of the volume,
    whether a file of ours tells of them or not; the newest last. Looked at as `live_is_empty`."""
    nfs_running: bool = False
    read_only: bool = False
    """The volume's file system takes no writes: nothing could be served from it."""
    obstacles: tuple[Obstacle, ...] = ()
    """What a promotion here would fail at, as it was found last (`role.readiness`)."""
    unread: str | None = None
    """Why the snapshots and the tree of a holder are not known: its disk, or a file of ours."""


def in_lineage(available: Available, cluster: Cluster) -> bool:
    """Tells whether the snapshot is part of the current epoch's past.

    A snapshot of epoch r counts only up to the base of each later epoch: what r wrote after that is
    diverged data. A history that can't be followed is doubt, and doubt is no.
    """
    return cluster.epoch is not None and _in_past(available, cluster.epoch, cluster.history)


def _in_past(available: Available, epoch: int, history: Mapping[int, HistoryEntry]) -> bool:
    while epoch > available.epoch:
        history_entry = history.get(epoch)
        try:
            base = SnapshotName.parse(
                (history_entry.base if history_entry is not None else None) or ""
            )
        except ValueError:
            return False
        if history_entry is None or history_entry.epoch != epoch or available.snapshot.name > base:
            return False
        epoch = history_entry.before
    return epoch == available.epoch


def is_beyond(available: Available, cluster: Cluster) -> bool:
    """Tells whether it has more than an epoch that never served began with: then it is as good a
    base as any for the next one, and the better one."""
    unused = cluster.unused
    if unused is None or available.ahead or not available.epoch:
        return False  # (what is of no epoch was taken of a tree that nobody else knows)
    try:
        began = SnapshotName.parse(unused.base or "")
    except ValueError:
        return False
    more = available.snapshot.name > began
    return more and _in_past(available, unused.before, cluster.history)


def newest(local: Local, cluster: Cluster) -> Available | None:
    """Returns the best snapshot that this node could be promoted from.

    After an orderly end that is the final one, whatever else there is; else the last one taken.
    """
    beyond = [available for available in local.snapshots if is_beyond(available, cluster)]
    fit = [available for available in local.snapshots if in_lineage(available, cluster)]
    ended = cluster.leader if cluster.given_up else None
    final = [available for available in fit if is_final(available, ended)]
    return max(beyond or final or fit, key=_order, default=None)


def _order(item: Available) -> tuple[int, bool, SnapshotName]:
    return (item.epoch, not item.ahead, item.snapshot.name)


def is_final(available: Available, leader: Leader | None) -> bool:
    """Tells whether it is the snapshot that has everything of the epoch that was given up in order.

    An older version's primary tells only its name.
    """
    if leader is None or not leader.is_clean or leader.final is None:
        return False
    if leader.final_id is not None:
        return available.snapshot.content_id == leader.final_id
    return str(available.snapshot.name) == leader.final
