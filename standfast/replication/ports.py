"""What replication needs of a store beyond what a plan needs: owned here, met by real stores.

Only `publish` makes anything visible under its final name; everything before it happens in the
staging directory, and can be thrown away at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from standfast.consul.values import Committed, Conflict, Entry, Op
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot, VolumeStore
from standfast.system.clock import Deadline


class ReplicaStore(VolumeStore, Protocol):
    """A store that can send its snapshots and take in another node's."""

    @property
    def kind(self) -> str:
        """`btrfs`, or what stands in for it: a stream is taken in by a store of the same kind."""

    def unfinished(self) -> Sequence[Path]:
        """Returns what lies in the standby directory and never counts: partial, foreign, badly
        named."""

    def nested(self) -> Sequence[str]:
        """Returns the trees inside the live one that its snapshots leave out; CommandFailed without
        root."""

    def send_argv(
        self, snapshot: Snapshot, parent: Snapshot | None, *, compressed_data: bool = False
    ) -> Sequence[str]:
        """Returns the command that writes the snapshot's stream to stdout, incremental from
        `parent`.

        `compressed_data` leaves compressed extents as they are, where this end can.
        """

    def estimate(self, snapshot: Snapshot, parent: Snapshot | None) -> int | None:
        """Returns about how many bytes the stream will have; None when that can't be said soon."""

    def used_bytes(self) -> int:
        """Returns how much of the volume's file system is in use, by everything there."""

    def abilities(self) -> Sequence[str]:
        """Returns what this end can take in beyond a plain stream
        (`btrfs.stream.COMPRESSED_DATA`)."""

    def prepare_parent(self, content_id: str) -> None:
        """Makes an increment on top of this snapshot receivable; called between open_staging and
        it."""

    def receive_argv(self, staging: Path) -> Sequence[str]:
        """Returns the command that reads one stream from stdin and builds its tree inside
        `staging`."""

    def open_staging(self) -> Path:
        """Returns an empty staging directory; what an interrupted receive left there is deleted."""

    def clear_staging(self) -> None:
        """Deletes everything in the staging directory."""

    def within(self, parent_content_id: str | None) -> Sequence[Path] | None:
        """Returns the places below which what takes in an increment on this may open files; None:
        it asks for none that a stream names."""

    def verify_staged(
        self, name: SnapshotName, content_id: str, parent_content_id: str | None = None
    ) -> None:
        """Syncs, and raises Refused (incomplete) unless exactly this snapshot is staged, whole, and
        built on that one; None: on none."""

    def publish(self, name: SnapshotName) -> Snapshot:
        """Makes the staged snapshot visible under its final name; on disk when this returns.

        What is staged stays until `clear_staging`.
        """


class ReplicaGateway(Protocol):
    """What replication asks of Consul."""

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None: ...

    def txn(
        self, ops: Sequence[Op], *, deadline: Deadline | None = None
    ) -> Committed | Conflict: ...
