"""Notes of where snapshots come from, as a test needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from standfast.ages import Origin
from standfast.config.model import Config
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.replication.published import note_origin


@dataclass(frozen=True)
class Named:
    """Something that isn't visible yet."""

    name: SnapshotName
    content_id: str


def note_epoch(
    config: Config,
    content_id: str,
    epoch: int,
    snapshots: Callable[[], Iterable[Snapshot]],
    taken_at: float | None = None,
) -> None:
    """As an older version did, unless `taken_at` is told: it noted no name."""
    named = Named(SnapshotName.at(config.base, 0.0), content_id)
    note_origin(config, named, Origin(epoch, taken_at), snapshots)
