"""A node's file system of subvolumes: the shipped naming and publishing, on trees in memory.

Each subvolume is a real, empty directory, so that what only looks at paths sees it; what is in it
are the numbers of the clients' writes, in their order.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from standfast.btrfs.names_and_places import STAGING, Store, TreeInfo
from standfast.config.model import Paths
from standfast.errors import CommandFailed
from standfast.names import SnapshotName
from standfast.node.ports import Ailment, Snapshot
from standfast.reasons import Reason
from standfast.system.clock import Deadline

if TYPE_CHECKING:
    from tests.sim.node import Seat, SimNode

COMMAND_S = 0.01
ROOM = 1 << 40


@dataclass(slots=True, eq=False)
class SimTree:
    """A subvolume: the writes in it, in their order."""

    uuid: str
    writes: list[int]
    received_uuid: str | None = None
    read_only: bool = False
    made_at: float = 0.0

    @property
    def info(self) -> TreeInfo:
        return TreeInfo(self.uuid, self.received_uuid, self.read_only)


@dataclass(slots=True)
class FileSystem:
    """What is mounted at one place: its trees by path."""

    trees: dict[Path, SimTree] = field(default_factory=dict)
    inside: dict[str, dict[Path, None]] = field(default_factory=dict)
    """By directory the trees directly in it."""

    def put(self, path: Path, tree: SimTree) -> None:
        self.trees[path] = tree
        self.inside.setdefault(str(path.parent), {})[path] = None

    def pop(self, path: Path) -> SimTree | None:
        self.inside.get(str(path.parent), {}).pop(path, None)
        return self.trees.pop(path, None)


@dataclass(slots=True)
class SimDisk:
    """One btrfs and the directory that it is mounted at."""

    root: Path
    uuid: str
    data: FileSystem = field(default_factory=FileSystem)
    bare: FileSystem = field(default_factory=FileSystem)
    """What lies in the directory itself while nothing is mounted there."""
    mounted: bool = True
    full: bool = False
    frozen: bool = False
    """The kernel made the file system read-only after an error."""
    broken: bool = False
    """Every access fails."""
    only: str = ""
    """These faults are of this volume's disk alone; empty: of the node's one disk."""
    changes: int = 0
    numbers: int = 0

    @property
    def prefix(self) -> str:
        return str(self.root)

    @property
    def here(self) -> FileSystem:
        return self.data if self.mounted else self.bare

    def unmount(self) -> None:
        self._swap(mounted=False)

    def mount(self) -> None:
        self._swap(mounted=True)

    def _swap(self, *, mounted: bool) -> None:
        if self.mounted == mounted:
            return
        away, other = (
            self.root.with_name(f".{self.root.name}-{kind}") for kind in ("data", "bare")
        )
        if mounted:
            away, other = other, away
        self.root.rename(away)
        if other.exists():
            other.rename(self.root)
        else:
            self.root.mkdir()
        self.mounted = mounted
        self.changes += 1

    def hits(self, volume: str) -> bool:
        """Whether this volume lies on what is faulty; empty: what all volumes lie on."""
        return not self.only or self.only == volume

    def check(self, volume: str, *, write: bool) -> None:
        if not self.hits(volume):
            return
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if write and self.frozen:
            raise CommandFailed("btrfs: Read-only file system", returncode=1)
        if write and self.full:
            raise CommandFailed("btrfs: No space left on device", returncode=1)

    def new_uuid(self) -> str:
        self.numbers += 1
        return f"{self.uuid}-{self.numbers}"

    def everything(self, base: str) -> set[int]:
        """Every write to the volume that is somewhere on this disk; staged trees don't count."""
        writes: set[int] = set()
        for file_system in (self.data, self.bare):
            for path, tree in file_system.trees.items():
                if path.name.startswith(base) and STAGING not in path.parts:
                    writes.update(tree.writes)
        return writes


class SimStore(Store):
    """The volume on a simulated disk."""

    _kind = "subvolume"

    def __init__(self, paths: Paths, node: SimNode, volume: str) -> None:
        super().__init__(paths)
        self._node = node
        self._disk = node.disk
        self._volume = volume
        self._before: tuple[int, int | None] = (0, None)

    def _work(self, *, write: bool = True) -> None:
        """What a program of btrfs takes, and how it fails."""
        self._node.world.clockwork.take(COMMAND_S)
        self._disk.check(self._volume, write=write)

    def _usage(self) -> tuple[int, int]:
        self._disk.check(self._volume, write=False)
        full = self._disk.full and self._disk.hits(self._volume)
        return 0, 0 if full else ROOM

    def file_system(self) -> str:
        self._disk.check(self._volume, write=False)
        return self._disk.uuid if self._disk.mounted else "the root file system"

    def ailment(self, deadline: Deadline) -> Ailment | None:
        if self.is_read_only():
            text = f"the file system of {self._paths.live} is read-only"
            return Ailment(Reason.VOLUME_READ_ONLY, text)
        try:
            self._disk.check(self._volume, write=False)
        except OSError as error:
            text = f"{self._paths.live} can't be read: {error.strerror}"
            return Ailment(Reason.VOLUME_UNREADABLE, text)
        return None

    def is_read_only(self) -> bool:
        return self._disk.frozen and self._disk.hits(self._volume)

    # Sending and taking in

    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> list[str]:
        argv = ["send", self._node.name, str(snapshot.path)]
        return argv if parent is None else [*argv, parent.content_id]

    def receive_argv(self, staging: Path) -> list[str]:
        return ["receive", self._node.name, self._volume, str(staging)]

    def within(self, parent_content_id: str | None) -> None:
        """Nothing is opened."""

    def stage(self, path: Path, content_id: str, writes: Sequence[int]) -> None:
        """What `btrfs receive` leaves after a whole stream."""
        self._work()
        path.mkdir()
        self._put(path, SimTree(self._disk.new_uuid(), list(writes), content_id, read_only=True))

    def verify_staged(
        self, name: SnapshotName, content_id: str, parent_content_id: str | None = None
    ) -> None:
        super().verify_staged(name, content_id, parent_content_id)
        self._before = self._node.world.invariants.before_publishing(self._seat)

    def publish(self, name: SnapshotName) -> Snapshot:
        snapshot = super().publish(name)
        self._node.world.invariants.published(self._seat, snapshot.content_id, self._before)
        return snapshot

    @property
    def _seat(self) -> Seat:
        return self._node.seats[self._volume]

    # What the store asks of a kind of storage

    def _info(self, path: Path) -> TreeInfo | None:
        self._disk.check(self._volume, write=False)
        tree = self._disk.here.trees.get(path)
        return None if tree is None else tree.info

    def _snapshot(self, source: Path, target: Path, *, read_only: bool) -> bool:
        if os.path.lexists(target):
            return False
        self._work()
        tree = self._disk.here.trees.get(source)
        if tree is None or os.path.lexists(target):
            return False
        received = tree.received_uuid if read_only else None
        try:
            target.mkdir()
        except FileNotFoundError as error:
            raise CommandFailed(f"btrfs: {error}", returncode=1) from error
        self._put(target, SimTree(self._disk.new_uuid(), list(tree.writes), received, read_only))
        return True

    def _put(self, path: Path, tree: SimTree) -> None:
        if not tree.made_at:
            tree.made_at = self._node.world.now
        self._disk.here.put(path, tree)
        self._disk.changes += 1

    def _create_place(self, path: Path) -> None:
        self._work()
        try:
            path.mkdir()
        except FileNotFoundError as error:
            raise CommandFailed(f"btrfs: {error}", returncode=1) from error

    def _sync(self, path: Path) -> None:
        self._work(write=False)

    def _set_read_only(self, path: Path, read_only: bool) -> None:
        self._work()
        self._disk.here.trees[path].read_only = read_only

    def _delete(self, paths: Sequence[Path]) -> None:
        self._work(write=True)
        for path in paths:
            gone = self._disk.here.pop(path)
            if path.is_dir():
                path.rmdir()
            if gone is not None and STAGING not in path.parts:
                self._node.world.log(f"{self._node.name}: {path.name} deleted")
                self._node.world.check_kept(self._volume, gone.writes)
        self._disk.changes += 1

    def _rename(self, source: Path, target: Path) -> None:
        self._work()
        source.rename(target)
        tree = self._disk.here.pop(source)
        assert tree is not None
        self._put(target, tree)

    def _nested(self, tree: Path) -> tuple[str, ...]:
        return ()


def entries(disks: Sequence[SimDisk], directory: Path) -> list[Path]:
    """`store._entries`: of a directory on one of these disks."""
    text = str(directory)
    for disk in disks:
        if text.startswith(disk.prefix):
            disk.check("", write=False)
            return list(disk.here.inside.get(text, ()))
    return []


def paths_of(directory: Path, base: str) -> Paths:
    """Where a volume lies on a node whose directory this is."""
    disk = directory / "persist"
    return Paths(
        live=disk / base,
        snapshots=disk,
        standby=disk / f"{base}-standby",
        bind=directory / "mnt" / base,
        state=directory / "state",
        run=directory / "run",
    )
