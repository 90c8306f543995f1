"""What this node can say about itself, gathered from files, the store and the server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from standfast.act.machine import Machine
from standfast.clock import monotonic
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus
from standfast.observe import Available, Local
from standfast.reign import OwnReign
from standfast.replication.published import epochs_of_snapshots, published_file

SNAPSHOTS_EVERY_S = 15.0


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at `path` (see locks.exclusive)."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def changed_at(paths: Sequence[Path]) -> tuple[int, ...]:
    """When each directory or file last changed, ns; 0 for one that isn't there."""
    found = []
    for path in paths:
        try:
            found.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            found.append(0)
    return tuple(found)


class LocalView:
    """This node, for one volume; the listing of snapshots is kept until a directory changes.

    A listing from before the last replication would make a standby wait with its takeover.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._epochs = EpochFile(machine.config.state_dir / "epoch")
        self._snapshots: tuple[Available, ...] = ()
        self._listed_at = float("-inf")
        self._listed: tuple[int, ...] = ()

    def note_epoch(self, epoch: int) -> None:
        """Durably remember that `epoch` was seen."""
        self._epochs.raise_to(epoch)

    def look(self, *, fresh: bool = False) -> Local:
        """StandfastError when a file of ours can't be understood."""
        machine, config = self._machine, self._machine.config
        own = OwnReign.load(config.state_dir)
        now = monotonic()
        paths = config.paths
        changed = changed_at((paths.snapshots, paths.standby, published_file(config)))
        if fresh or changed != self._listed or now - self._listed_at >= SNAPSHOTS_EVERY_S:
            epochs = epochs_of_snapshots(config)
            self._snapshots = tuple(
                Available(snapshot, epochs[snapshot.content_id])
                for snapshot in machine.store.snapshots()
                if snapshot.content_id in epochs
            )
            self._listed_at, self._listed = now, changed
        return Local(
            node=config.node,
            instance=machine.me.instance,
            highest_epoch=self._epochs.read(),
            own=own,
            lease=LeaseStatus.load(config.run_dir),
            lease_alive=is_locked(config.run_dir / "lease.lock"),
            snapshots=self._snapshots,
            has_live=config.paths.live.exists(),
            nfs_running=machine.nfs.is_running() if own is not None else False,
        )

    def glance(self, before: Local) -> Local:
        """What changes from second to second, read again; for any thread, nothing is kept."""
        run_dir = self._machine.config.run_dir
        return replace(
            before,
            own=OwnReign.load(self._machine.config.state_dir),
            lease=LeaseStatus.load(run_dir),
            lease_alive=is_locked(run_dir / "lease.lock"),
        )
