"""What /api/v1/status tells of one volume; docs/status-page.md has its keys.

Invariant: None is "not known", or "not there", and is written as null.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from standfast.status.document import Decision, GivenUp, NomadReport, Paused, Word


class Level(StrEnum):
    """Says how well it is, from the best to the worst."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    UNKNOWN = "unknown"
    ALARM = "alarm"


class Line(Struct, frozen=True):
    """Answers who serves; `advice`: what to do, None when nothing is to be done."""

    level: Level
    text: str
    advice: str | None = None


class Notice(Struct, frozen=True):
    """Names something else that is worth a look; `what` is a stable name, `text` for people."""

    level: Level
    what: str
    text: str
    next: str | None = None


class Limits(Struct, frozen=True):
    """Says what ages are compared with."""

    interval_s: float
    max_data_loss_s: float


class Lease(Struct, frozen=True):
    """Says what is left of this node's lease."""

    remaining_s: float
    length_s: float
    trouble: str | None


class Fence(Struct, frozen=True):
    """Describes this node's fence; `open_for_s` None: without end."""

    in_place: bool
    open_for_s: float | None
    flushes: int


class Failover(Struct, frozen=True):
    """Says whether a standby could take over now, and the next step where none could."""

    possible: bool | None
    reason: str | None
    sentence: str
    next: str | None
    to: str | None = None
    """The standby that would; None: none, or an older agent's document."""


class Trend(Struct, frozen=True):
    """Holds the highest age of each step, the newest last."""

    step_s: float
    ages_s: tuple[float | None, ...]


class Failure(Struct, frozen=True):
    """Says why the last replication failed; `at`: UTC seconds."""

    at: float | None
    reason: str | None
    text: str | None


class Replication(Struct, frozen=True):
    """Holds what the primary noted of its replications to a standby."""

    last_success_at: float | None
    duration_s: float | None
    sent_bytes: int | None
    needs_full: bool
    failure: Failure | None
    verified_at: float | None
    verified_ok: bool | None


class Standby(Struct, frozen=True):
    """Describes one standby, and says how well it is."""

    node: str
    age_s: float | None
    snapshot: str | None
    epoch: int | None
    candidate: bool
    level: Level
    trend: Trend
    replication: Replication | None
    word: Word | UnsetType | None = UNSET
    """None: it says nothing of itself. UNSET: an older agent's document."""
    on_hold: Paused | UnsetType | None = UNSET
    """Who took it out of those who take over. UNSET: as for the word."""


class Client(Struct, frozen=True):
    """Holds what a client said of its mount, and says how well that is."""

    node: str
    server: str | None
    epoch: int | None
    state: str
    at: float
    level: Level


class Source(Struct, frozen=True):
    """Says whether a source could be read; `text`: why not."""

    ok: bool
    text: str | None


class Volume(Struct, frozen=True, kw_only=True):
    """Holds all of it, in the order in which it is written."""

    volume: str
    node: str
    role: str
    mode: str
    limits: Limits
    serving: str | None
    holder: str | None
    state: str | None
    epoch: int | None
    since: float | None
    began_by: str | None
    lost_s: float | None
    last_heartbeat_seen_s: float | None
    unserved_s: float | None
    not_surrendered: str | None
    given_up: GivenUp | None
    lease: Lease | None
    fence: Fence | None
    failover: Failover
    paused: Paused | None
    decision: Decision | None
    standbys: tuple[Standby, ...] | None
    history: tuple[Mapping[str, Any], ...] | None
    clients: tuple[Client, ...] | None
    nomad: NomadReport | None
    busy: str | None
    trouble: str | None
    sick: str | None
    hidden: str | None
    kept_aside: tuple[str, ...] | None
    sources: Mapping[str, Source]
    headline: Line = Line(Level.UNKNOWN, "")
    level: Level = Level.UNKNOWN
    notices: tuple[Notice, ...] = ()

    @property
    def best_age_s(self) -> float | None:
        """Returns the age of the newest snapshot that a candidate has, seconds; of the one that
        would take over, where that is known."""
        to = self.failover.to
        ages = [
            standby.age_s
            for standby in self.standbys or ()
            if standby.candidate and standby.age_s is not None and to in (None, standby.node)
        ]
        return min(ages, default=None)
