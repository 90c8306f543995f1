"""What a plan needs of the machine: narrow protocols, owned here, met by real parts.

Every effect can be repeated without harm, and has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.space import Space
from standfast.reasons import Reason
from standfast.system.clock import Deadline


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A read-only snapshot that is complete: taken here, or received, verified and published."""

    name: SnapshotName
    path: Path
    content_id: str
    """received UUID, or else UUID: equal on both sides of a replication."""
    received: bool
    """Published by a receive (in the standby directory), not taken here."""


@dataclass(frozen=True, slots=True)
class LiveTree:
    """The subvolume at the live path."""

    path: Path
    uuid: str
    writable: bool


@dataclass(frozen=True, slots=True)
class Writer:
    """Who can write into the live subvolume, though that is read-only."""

    pid: int
    """0: the kernel itself, for a block device."""
    name: str
    """Of the program, or of the device."""
    file: str
    unit: str = ""
    """The systemd unit that it runs in; empty: none, or not known."""

    def __str__(self) -> str:
        return f"{self.name} ({f'pid {self.pid}: ' if self.pid else ''}{self.file})"


@dataclass(frozen=True, slots=True)
class Ailment:
    """Why a volume can't be served from its file system."""

    reason: Reason
    text: str

    def __str__(self) -> str:
        return self.text


class VolumeStore(Protocol):
    """The volume's subvolumes on this node."""

    def file_system(self) -> str:
        """Returns the UUID of the file system that is mounted where the volume lies; empty where
        the kind of storage has none. StandfastError when what is there can't have the volume."""

    def live(self) -> LiveTree | None:
        """Returns the live subvolume, or None when nothing is at its path."""

    def obstacle(self) -> str | None:
        """Says why no live subvolume could be made, or put away, at its path; None: nothing does.
        Of what is there it tells only what could be asked for without a promotion."""

    def snapshot_obstacle(self) -> str | None:
        """Says why `take_snapshot` would refuse; None: it would not. Nothing is changed."""

    def snapshots(self) -> Sequence[Snapshot]:
        """Returns all complete snapshots here, own and published; partial ones never appear."""

    def take_snapshot(self, name: SnapshotName) -> Snapshot:
        """Takes a read-only snapshot of the live subvolume, which is on disk when this returns."""

    def delete(self, snapshots: Sequence[Snapshot]) -> None:
        """Deletes these snapshots."""

    def create_live_from(self, base: Snapshot) -> LiveTree:
        """Returns a writable live subvolume with the content of `base`; the live path must be
        free."""

    def set_live_writable(self, writable: bool) -> None: ...

    def writers(self, deadline: Deadline) -> Sequence[Writer]:
        """Returns who has a file of the live subvolume open or mapped for writing, by any mount."""

    def ailment(self, deadline: Deadline) -> Ailment | None:
        """Says why the live subvolume's file system can't be served from; None: nothing is seen to
        be wrong. One that doesn't answer in time is wrong, too."""

    def is_read_only(self) -> bool:
        """Tells whether the whole file system takes no writes, as after an error; one that can't be
        asked takes none."""

    def keep_aside(self, name: str) -> Path:
        """Renames the live subvolume to `name` beside it; nothing is deleted."""

    def aside(self) -> Sequence[Path]:
        """Returns the subvolumes kept aside (diverged and retired), sorted."""

    def free_bytes(self) -> int: ...

    def space(self) -> Space:
        """Returns the room that the volume's file system has, for data and for metadata."""


class NfsServer(Protocol):
    """The NFS server and this volume's export."""

    def export(self, fsid: str) -> None:
        """Writes the export with this fsid UUID; effective at the server's next start or reload."""

    def is_exported(self, fsid: str) -> bool:
        """Tells whether a running server exports the volume with this fsid, and would after a
        restart."""

    def would_export(self) -> bool:
        """Tells whether a server that starts now would export the volume; in doubt it would."""

    def unexport(self) -> None: ...

    def start(self, deadline: Deadline) -> None:
        """Starts the server (the guard runs); Refused when the guard refused.

        One that runs goes on, and the guard need not be asked.
        """

    def stop(self, deadline: Deadline) -> None:
        """Stops the server and checks that no thread is left."""

    def is_running(self) -> bool:
        """Tells whether any server thread exists, whoever started it."""

    def unfenced(self) -> str | None:
        """Says why the fence doesn't shut all that a running server listens at; None: nothing is
        seen that it doesn't."""

    def check(self, deadline: Deadline) -> str | None:
        """Returns None when a client would be served (threads, export, the way to it, what the
        server needs beside itself), else why not."""

    def mend(self, deadline: Deadline) -> str | None:
        """Starts again what a server that runs needs beside itself and has lost; returns what that
        was, None: nothing. StandfastError: it doesn't start.

        `check` says first whether anything is missed.
        """

    def obstacles(self) -> Iterable[Obstacle]:
        """Looks ahead for what exporting the volume here and starting the server would fail at;
        nothing is changed. StandfastError, OSError for what can't be looked at."""


class Fence(Protocol):
    """The kernel's cut-off of the NFS port; with several volumes the least lease counts."""

    def claim(self) -> None:
        """Lets the port pass only while this volume's lease lasts, too: what is open was given
        without asking for it, and is shut."""

    def release(self) -> None:
        """Leaves the port to the others: this volume is not served here any more."""

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        """Puts the rules in place with the port shut; nothing else of the firewall changes."""

    def arm(self, until: float, latest: float) -> bool:
        """Lets the port pass until `until` (monotonic s), by kernel timeout.

        Must not take effect after `latest` (monotonic s), whatever freezes on the way: TimedOut.
        StandfastError when the lease is over. Returns whether the rules had to be put back first
        (someone flushed them).
        """

    def state(self) -> FenceState: ...


@dataclass(frozen=True, slots=True)
class FenceState:
    """What the kernel says."""

    in_place: bool
    """The rules that drop the port are there, both ways."""
    open_for_s: float
    """Seconds for which the port still passes; 0 when shut."""
    claimed: bool = True
    """This volume has a claim to the port."""


class BindMount(Protocol):
    """The volume at the path where every node sees it; what others put there is left alone."""

    def mount(self, deadline: Deadline) -> None:
        """Mounts the volume there; StandfastError where the path is taken."""

    def unmount(self, deadline: Deadline) -> None:
        """Fails, naming the writers, when somebody can still write through it.

        Of a tree that is read-only nobody keeps it.
        """

    def is_mounted(self) -> bool:
        """Tells whether the volume, and nothing else, is what is seen there."""

    def obstacle(self, deadline: Deadline) -> str | None:
        """Says why the volume could not be mounted there, by the judge that `mount` goes by; None:
        it could. Nothing is changed."""

    def mounts_below(self, deadline: Deadline) -> Sequence[str]:
        """Returns where others mounted something below it that `unmount` would fail at; none of
        what goes with it. Nothing is changed."""

    def stops(self, deadline: Deadline) -> Sequence[str]:
        """Returns the systemd units that `unmount` stops with it, sorted. Nothing is changed."""


class Units(Protocol):
    """The service manager, for units of ours."""

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """Forgets failures, and with them the start limit; nothing to forget is no error."""

    def start(self, unit: str, deadline: Deadline) -> None: ...

    def stop(self, unit: str, deadline: Deadline) -> None: ...

    def is_active(self, unit: str) -> bool: ...

    def obstacle(self, unit: str) -> str | None:
        """Says why a unit can't be started at all (masked, not there); None: it can."""


class ReplicaSender(Protocol):
    """One replication of one snapshot to one standby."""

    def replicate(
        self,
        standby: str,
        snapshot: Snapshot,
        epoch: int,
        deadline: Deadline,
        give_up: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Returns when the standby acknowledged it as published and on disk.

        `give_up` is asked now and then, while others are waited for: a text is the reason to end,
        with TimedOut.
        """

    def greet(self, standby: str, deadline: Deadline) -> None:
        """Returns when the other node has answered as one that takes snapshots in;
        StandfastError."""

    def inspect(self, standby: str, deadline: Deadline) -> Sequence[Obstacle]:
        """Has the standby look at what a promotion there would meet, now; StandfastError when it
        can't be reached, or doesn't understand."""


class Jobs(Protocol):
    """What a scheduler runs on this node because it is the primary."""

    def prepare(self, name: str, epoch: int, deadline: Deadline) -> str:
        """Makes node `name` ready for them before it is primary; returns what came of it, or raises
        StandfastError."""

    def release(self, deadline: Deadline) -> None:
        """Ends them in order and has none come back; StandfastError: some may be left."""

    def release_limit_s(self) -> float:
        """Returns the longest that `release` takes, seconds, whatever hangs."""

    def resume(self) -> None:
        """Ends the plan in which they were released, whichever way it went."""


class Schedule(Protocol):
    """Replication to every standby at the configured interval."""

    def start(self) -> None:
        """Makes it run; repeated at each upkeep of a primary."""

    def stop(self) -> None: ...
