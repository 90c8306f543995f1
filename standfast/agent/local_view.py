"""What this node can say about itself, gathered from files, the store and the server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from standfast.ages import FUTURE_TOLERANCE_S, WAS_SET_S, Origin
from standfast.errors import Refused, StandfastError, ours
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus
from standfast.names import SnapshotName
from standfast.node.node import Machine
from standfast.node.own_epoch import OwnEpoch
from standfast.node.ports import Snapshot
from standfast.replication.published import note_clock, origins_of_snapshots, published_file
from standfast.role import volume
from standfast.role.observation import Available, Local
from standfast.system.clock import Instant, instant
from standfast.system.locks import is_locked

SNAPSHOTS_EVERY_S = 15.0
MOST_DIRECTORIES = 10_000


def changed_at(paths: Sequence[Path]) -> tuple[int, ...]:
    """Returns when each directory or file last changed, ns; 0 for one that isn't there."""
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            times.append(0)
    return tuple(times)


def available(snapshot: Snapshot, origin: Origin, utc: float) -> Available:
    """Returns the snapshot with what is known of it at `utc`, UTC seconds."""
    if origin.taken_at is not None:
        return Available(snapshot, origin.epoch, origin.time(snapshot.name))
    ahead = snapshot.name.stamp > utc + FUTURE_TOLERANCE_S
    return Available(snapshot, origin.epoch, ahead=ahead)


def _visible(directory: Path) -> Sequence[Path]:
    try:
        return [path for path in directory.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def _has_data(path: Path) -> bool:
    """Tells whether it is a directory in which, at any depth, something else than a directory lies.

    Units and tmpfiles make directories in a tree that was made by hand. A tree too large to look
    through each time counts as one with data. What is mounted there, or another subvolume, is no
    part of the tree.
    """
    if not path.is_dir():
        return False
    device, seen, waiting = path.stat().st_dev, 0, [str(path)]
    while waiting:
        # One that goes meanwhile holds nothing any more.
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > MOST_DIRECTORIES or not entry.is_dir(follow_symlinks=False):
                    return True
                if entry.stat(follow_symlinks=False).st_dev == device:
                    waiting.append(entry.path)
    return False


def _by_time(copy: Path) -> tuple[float, str]:
    """A name that tells no time comes first."""
    with contextlib.suppress(ValueError):
        return SnapshotName.parse(copy.name).stamp, copy.name
    return float("-inf"), copy.name


class LocalView:
    """Looks at this node for one volume; keeps the listing of snapshots until a directory changes.

    A listing from before the last replication would make a standby wait with its takeover.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._epochs = EpochFile(machine.config.state_dir / "epoch")
        self._snapshots: tuple[Available, ...] = ()
        self._listed_at = float("-inf")
        self._listed: tuple[int, ...] = ()
        self._offset = float("-inf")

    def note_epoch(self, epoch: int) -> None:
        """Remembers durably that `epoch` was seen."""
        self._epochs.raise_to(epoch)

    def look(self, *, fresh: bool = False) -> Local:
        """Returns what is known now; StandfastError when a file of ours can't be understood, and
        what a failing disk raises.

        But not on the holder of the lease, which has to be able to give the role up: there it is
        `unread`, and told.
        """
        machine, config = self._machine, self._machine.config
        held = is_locked(config.run_dir / "lease.lock")
        own = OwnEpoch.load(config.state_dir) if held else volume.own_epoch(machine)
        local = Local(
            node=config.node,
            instance=machine.me.instance,
            highest_epoch=self._epochs.read(),
            own=own,
            lease=LeaseStatus.load(config.run_dir),
            lease_alive=held,
            nfs_running=machine.nfs.is_running() if own is not None else False,
            read_only=machine.store.is_read_only(),
        )
        try:
            seen = replace(local, snapshots=self._known(fresh=fresh))
            seen = replace(seen, has_live=self._has_live(own))
            return seen if own is not None or local.highest_epoch else self._before_any_epoch(seen)
        except (StandfastError, OSError) as error:
            if not held:
                raise
            return replace(local, unread=str(ours(error)))

    def _has_live(self, own: OwnEpoch | None) -> bool:
        """Of a node that has, or had, an epoch: its own tree, not what somebody put there."""
        if own is None or own.live_uuid is None:
            return self._machine.config.paths.live.exists()
        with contextlib.suppress(Refused):  # something else than a subvolume
            live = self._machine.store.live()
            return live is not None and live.uuid == own.live_uuid
        return False

    def _before_any_epoch(self, local: Local) -> Local:
        """A snapshot without data is no copy: a first promotion that failed leaves one."""
        paths, store = self._machine.config.paths, self._machine.store
        known = {snapshot.path for snapshot in store.snapshots()}
        trees = known.union(store.aside(), _visible(paths.standby))
        return replace(
            local,
            live_is_empty=local.has_live and not _has_data(paths.live),
            copies=tuple(sorted(filter(_has_data, trees), key=_by_time)),
        )

    def _known(self, *, fresh: bool) -> tuple[Available, ...]:
        config, now = self._machine.config, instant()
        paths = config.paths
        changed = changed_at((paths.snapshots, paths.standby, published_file(config)))
        # Their times are by the clock as it was then.
        was_set = abs(now.utc - now.up - self._offset) > WAS_SET_S
        late = now.up - self._listed_at >= SNAPSHOTS_EVERY_S
        if fresh or was_set or late or changed != self._listed:
            self._snapshots = self._list(now)
            # From its end: where it takes long it isn't all that this node does.
            self._listed_at, self._listed = instant().up, changed
            self._offset = now.utc - now.up
        return self._snapshots

    def _list(self, now: Instant) -> tuple[Available, ...]:
        config, store = self._machine.config, self._machine.store
        origins = origins_of_snapshots(config, now)
        with contextlib.suppress(StandfastError, OSError):  # busy, or no space: next time
            note_clock(config, now)
        return tuple(
            available(snapshot, origin, now.utc)
            for snapshot in store.snapshots()
            if (origin := origins.get(snapshot.content_id)) is not None
        )

    def glance(self, before: Local) -> Local:
        """Reads again what changes from second to second; for any thread, nothing is kept."""
        run_dir = self._machine.config.run_dir
        return replace(
            before,
            own=OwnEpoch.load(self._machine.config.state_dir),
            lease=LeaseStatus.load(run_dir),
            lease_alive=is_locked(run_dir / "lease.lock"),
        )
