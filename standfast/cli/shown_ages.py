"""How old a snapshot is, as far as anybody here knows: for commands that show what others have."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from standfast.ages import Origin, age_of
from standfast.config.model import Config
from standfast.consul.records import StandbyRecord
from standfast.errors import StandfastError
from standfast.names import SnapshotName
from standfast.replication.published import origins_of_snapshots
from standfast.system.clock import instant, utc_now
from standfast.text import duration


def origins_here(config: Config) -> Mapping[str, Origin]:
    """Returns what this node has noted of snapshots, by content id; empty if unreadable."""
    with contextlib.suppress(StandfastError):
        return origins_of_snapshots(config, instant())
    return {}


@dataclass(frozen=True, slots=True)
class ShownAge:
    """Says how old a snapshot is that Consul tells of, as far as anybody here knows."""

    age_s: float | None
    clock: str | None = None
    """Whose it goes by, as nobody counts here; None: this node has noted it, or nobody knows."""

    def sentence(self) -> str:
        if self.age_s is None:
            return "of unknown age"
        return f"{duration(self.age_s)} old" + (f" by {self.clock}'s clock" if self.clock else "")


def age_by_record(record: StandbyRecord, here: Mapping[str, Origin]) -> ShownAge:
    """Returns the age by this node's own count (`origins_here`), else by the record."""
    origin, utc = here.get(record.content_id), utc_now()
    if origin is not None and origin.taken_at is not None and record.time is not None:
        return ShownAge(age_of(origin.time(SnapshotName.parse(record.snapshot)), utc))
    found_s = age_of(record.believed_time(utc), utc)
    return ShownAge(found_s, None if found_s is None else record.by or "the primary")
