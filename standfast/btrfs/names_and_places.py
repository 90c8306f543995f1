"""What both kinds of storage have in common: which trees count, and under which names.

Invariant: a tree counts only when it is read-only, carries a believable name, lies in its
directory (own or standby) and, when received, has the sender's identity, which is given to it
only at the end of a whole stream. Everything else is reported by `unfinished()` at most.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from standfast.btrfs.place import is_mount_point, nearest
from standfast.config.model import Paths
from standfast.consul.record import MOST_SECONDS
from standfast.errors import Refused, StandfastError, TimedOut, said
from standfast.names import SnapshotName
from standfast.node.ports import Ailment, LiveTree, Snapshot, Writer
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.threads import SingleFlight

STAGING = ".staging"
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class TreeInfo:
    """Identity of a subvolume (or of what stands for one)."""

    uuid: str
    received_uuid: str | None
    read_only: bool
    parent_uuid: str | None = None  # of what it is a snapshot of, or was received on

    @property
    def content_id(self) -> str:
        return self.received_uuid or self.uuid


class Store(ABC):
    """Holds what both stores share; a kind supplies the primitives at the end."""

    kind: str

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._base = paths.live.name
        self._flights = SingleFlight()

    # What is here

    def file_system(self) -> str:
        """Returns nothing, unless the kind of storage can say."""
        return ""

    def live(self) -> LiveTree | None:
        path = self._paths.live
        if not os.path.lexists(path):
            return None
        info = self._info(path)
        if info is None:
            raise Refused(
                Reason.VOLUME_MISSING,
                f"{path} exists but is no {self._kind}: Standfast serves and replicates only a "
                f"{self._kind}; move it away, or make it one (copy its files into a new one)",
            )
        return LiveTree(path, info.uuid, writable=not info.read_only)

    def obstacle(self) -> str | None:
        live = self._paths.live
        if not live.parent.is_dir():
            return f"there is no directory {live.parent}, in which {live.name} would be made"
        try:
            if self.live() is not None and is_mount_point(live):
                return f"{live} is a mount point, which can't be renamed: unmount it for good"
        except Refused as refusal:
            return str(refusal)
        return None

    def snapshot_obstacle(self) -> str | None:
        try:
            self._to_snapshot()
        except Refused as refusal:
            return str(refusal)
        return None

    def snapshots(self) -> tuple[Snapshot, ...]:
        complete = [*self._complete(received=False), *self._complete(received=True)]
        return tuple(sorted(complete, key=lambda snapshot: (snapshot.name, snapshot.received)))

    def unfinished(self) -> tuple[Path, ...]:
        standby = self._paths.standby
        counted = {snapshot.path for snapshot in self._complete(received=True)}
        visible = {path for path in _entries(standby) if not path.name.startswith(".")}
        return tuple(sorted(visible - counted)) + tuple(self._staged())

    def aside(self) -> tuple[Path, ...]:
        live = self._paths.live
        prefixes = (f"{live.name}.diverged-", f"{live.name}.retired-")
        kept = [path for path in _entries(live.parent) if path.name.startswith(prefixes)]
        return tuple(sorted(path for path in kept if self._info(path) is not None))

    def nested(self) -> Sequence[str]:
        """Returns the other trees inside the live one, which its snapshots would leave out."""
        live = self.live()
        return () if live is None else self._nested(live.path)

    def free_bytes(self) -> int:
        return self._usage()[1]

    def used_bytes(self) -> int:
        return self._usage()[0]

    def space(self) -> Space:
        """Returns what any file system says, unless the kind of storage knows more."""
        used, free = self._usage()
        return Space(size=used + free, data=free)

    def _usage(self) -> tuple[int, int]:
        usage = disk_usage(self._place())
        return usage.used, usage.free

    def _place(self) -> Path:
        for path in (self._paths.standby, self._paths.live.parent):
            if path.exists():
                return path
        raise StandfastError(
            f"neither {self._paths.standby} nor {self._paths.live.parent} exists; is the "
            f"volume's file system mounted?"
        )

    # The live tree

    def take_snapshot(self, name: SnapshotName) -> Snapshot:
        """Moves the name on where needed: names here are unique and strictly rise."""
        live = self._to_snapshot()
        if not os.path.lexists(self._paths.snapshots):
            self._create_place(self._paths.snapshots)
        for _ in range(_ATTEMPTS):
            chosen = self._next_name(name)
            target = self._paths.snapshots / str(chosen)
            if self._snapshot(live, target, read_only=True):
                self._sync(target)
                return self._just_made(target, chosen, received=False)
        raise Refused(
            Reason.BUSY, f"{self._paths.snapshots}: others keep taking snapshots there; try again"
        )

    def create_live_from(self, base: Snapshot) -> LiveTree:
        path = self._paths.live
        if os.path.lexists(path):
            raise Refused(
                Reason.UNEXPECTED,
                f"{path} exists: a live tree is only made where nothing is; keep it aside first",
            )
        if not self._snapshot(base.path, path, read_only=False):
            raise Refused(Reason.BUSY, f"{path} was created by somebody else just now")
        self._sync(path)
        live = self.live()
        assert live is not None
        return live

    def set_live_writable(self, writable: bool) -> None:
        live = self.live()
        if live is None:
            raise Refused(Reason.VOLUME_MISSING, f"{self._paths.live} does not exist")
        if live.writable != writable:
            self._set_read_only(live.path, not writable)

    def writers(self, deadline: Deadline) -> Sequence[Writer]:  # noqa: ARG002
        """Returns nobody, unless the kind of storage can say."""
        return ()

    def ailment(self, deadline: Deadline) -> Ailment | None:
        live = self._paths.live

        def look() -> Ailment | None:
            if self.is_read_only():
                text = f"the file system of {live} is read-only, or its disk fails (see `dmesg`)"
                return Ailment(Reason.VOLUME_READ_ONLY, text)
            with os.scandir(live) as entries:
                next(entries, None)
            return None

        try:
            return self._flights.look(live, look, deadline)
        except TimedOut as error:
            return Ailment(Reason.VOLUME_HANGS, f"{live} can't be looked at: {error}")
        except FileNotFoundError:
            return Ailment(Reason.VOLUME_MISSING, f"there is no {live}")
        except OSError as error:
            return Ailment(Reason.VOLUME_UNREADABLE, f"{live} can't be read: {said(error)}")

    def is_read_only(self) -> bool:
        try:
            return bool(os.statvfs(nearest(self._paths.live)).f_flag & os.ST_RDONLY)
        except OSError:  # what can't even be asked takes no writes
            return True

    def keep_aside(self, name: str) -> Path:
        live = self._paths.live
        target = live.with_name(name)
        if os.path.lexists(target):
            raise Refused(
                Reason.UNEXPECTED, f"{target} exists already: {live} can't be kept under that name"
            )
        self._rename(live, target)
        return target

    # Sending and taking in

    @abstractmethod
    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> list[str]: ...

    def estimate(
        self,
        snapshot: Snapshot,  # noqa: ARG002
        parent: Snapshot | None,  # noqa: ARG002
    ) -> int | None:
        """Returns None, unless the kind of storage can say."""
        return None

    def abilities(self) -> Sequence[str]:
        """Returns nothing more than a plain stream, unless the kind of storage can."""
        return ()

    def prepare_parent(self, content_id: str) -> None:  # noqa: B027
        """Does nothing, unless the kind of storage wants it."""

    @abstractmethod
    def receive_argv(self, staging: Path) -> list[str]: ...

    def open_staging(self) -> Path:
        staging = self._paths.standby / STAGING
        if not os.path.lexists(self._paths.standby):
            self._create_place(self._paths.standby)
        staging.mkdir(exist_ok=True, mode=0o700)
        self.clear_staging()
        return staging

    def clear_staging(self) -> None:
        leftovers = sorted(_entries(self._paths.standby / STAGING))
        if leftovers:
            self._delete(leftovers)

    def verify_staged(
        self,
        name: SnapshotName,
        content_id: str,
        parent_content_id: str | None = None,  # noqa: ARG002
    ) -> None:
        path = self._paths.standby / STAGING / str(name)
        if (staged := self._staged()) != (path,):
            names = ", ".join(tree.name for tree in staged) or "nothing"
            raise Refused(
                Reason.INCOMPLETE, f"the stream held {names}; announced was {name}: not published"
            )
        self._sync(path)
        info = self._info(path)
        if info is None or not info.read_only or info.received_uuid is None:
            raise Refused(Reason.INCOMPLETE, f"{name} did not arrive whole: not published")
        if info.received_uuid != content_id:
            raise Refused(
                Reason.INCOMPLETE,
                f"{name} arrived with content {info.received_uuid}, announced was {content_id}: "
                f"not published",
            )

    def publish(self, name: SnapshotName) -> Snapshot:
        staged = self._paths.standby / STAGING / str(name)
        target = self._paths.standby / str(name)
        if os.path.lexists(target) or not self._snapshot(staged, target, read_only=True):
            raise Refused(
                Reason.BAD_NAME,
                f"{target} exists already and is no published snapshot; look at it, delete it",
            )
        self._sync(target)
        return self._just_made(target, name, received=True)

    def delete(self, snapshots: Sequence[Snapshot]) -> None:
        if snapshots:
            self._delete([snapshot.path for snapshot in snapshots])

    # Names

    def _complete(self, *, received: bool) -> Iterator[Snapshot]:
        for path in _entries(self._paths.standby if received else self._paths.snapshots):
            try:
                name = SnapshotName.parse(path.name)
            except ValueError:
                continue
            if name.base != self._base:
                continue
            snapshot = self._snapshot_at(path, name, received=received)
            if snapshot is not None:
                yield snapshot

    def _next_name(self, wanted: SnapshotName) -> SnapshotName:
        """`wanted`, or the second after the latest name in use, complete or not."""
        used = []
        for directory in (self._paths.snapshots, self._paths.standby):
            for path in _entries(directory):
                with contextlib.suppress(ValueError):
                    used.append(SnapshotName.parse(path.name))
        chosen = wanted.after_found(name for name in used if name.base == wanted.base)
        if chosen.stamp >= MOST_SECONDS:
            raise Refused(
                Reason.BAD_NAME,
                f"no name comes after that of the latest snapshot in {self._paths.snapshots} and "
                f"{self._paths.standby}, as the year 10000 has none: set the clock, and delete or "
                f"rename that snapshot",
            )
        return chosen

    def _snapshot_at(self, path: Path, name: SnapshotName, *, received: bool) -> Snapshot | None:
        """Returns the complete snapshot at `path`; None when what is there doesn't count as one."""
        info = self._info(path)
        if info is None or not info.read_only or (received and info.received_uuid is None):
            return None
        return Snapshot(name, path, info.content_id, received)

    def _just_made(self, path: Path, name: SnapshotName, *, received: bool) -> Snapshot:
        snapshot = self._snapshot_at(path, name, received=received)
        if snapshot is None:
            raise StandfastError(f"{path} is not the {self._kind} that was just made there")
        return snapshot

    def _to_snapshot(self) -> Path:
        """Returns the live tree; Refused where a snapshot of it would lack something, or would
        carry the same content id as all others of it, whatever is in it."""
        path, live = self._paths.live, self.live()
        if live is None:
            raise Refused(Reason.VOLUME_MISSING, f"{path} does not exist: nothing to snapshot")
        if nested := self._nested(path):
            raise Refused(
                Reason.INCOMPLETE,
                f"{path} contains other subvolumes, which a snapshot silently leaves out: "
                f"{', '.join(nested)}. Turn them into directories, or move them elsewhere",
            )
        info = self._info(path)
        if info is not None and info.received_uuid is not None:
            raise Refused(
                Reason.UNEXPECTED,
                f"{path} is the live tree and has a received UUID ({info.received_uuid}), which "
                f"all its snapshots would inherit; `standfast doctor` says how to remove it",
            )
        return path

    def _staged(self) -> tuple[Path, ...]:
        entries = _entries(self._paths.standby / STAGING)
        return tuple(sorted(path for path in entries if not path.name.startswith(".")))

    # What a kind of storage supplies

    _kind: str

    @abstractmethod
    def _info(self, path: Path) -> TreeInfo | None:
        """Returns the identity of the tree whose root is `path`; None when it is none or gone."""

    @abstractmethod
    def _snapshot(self, source: Path, target: Path, *, read_only: bool) -> bool:
        """Snapshots `source` as `target`; False when `target` came into being meanwhile."""

    @abstractmethod
    def _create_place(self, path: Path) -> None:
        """The place of own or of received snapshots, root's alone: set-uid files lie in them."""

    @abstractmethod
    def _sync(self, path: Path) -> None:
        """Everything written so far to the file system of `path` has reached the disk."""

    @abstractmethod
    def _set_read_only(self, path: Path, read_only: bool) -> None: ...

    @abstractmethod
    def _delete(self, paths: Sequence[Path]) -> None:
        """Deletes trees, and whatever else is there under these names."""

    @abstractmethod
    def _rename(self, source: Path, target: Path) -> None: ...

    @abstractmethod
    def _nested(self, tree: Path) -> Sequence[str]: ...


def _entries(directory: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(directory)]
    except FileNotFoundError:
        return []
