"""The status document: what the agent's socket and `standfast status --json` tell of a volume.

Invariants: what isn't known is left out as a whole and is None here, or UNSET where null means
"nothing": it is never taken for well. Of a program of another version unknown keys are ignored and
most missing ones have a default; where that could be taken for well, the key has to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from msgspec import UNSET, Struct, UnsetType, ValidationError, convert, to_builtins

from standfast.errors import StandfastError
from standfast.reasons import Reason

VERSION = 1


class Failover(Struct, frozen=True):
    """Says whether a standby could take over now; the reason code when none could."""

    possible: bool
    reason: str | None
    sentence: str
    to: str | None = None
    """The standby that would; None: none, or an older agent's document, which doesn't tell."""


class Decision(Struct, frozen=True):
    """Says what the agent does, the reason code, and the same for people."""

    action: str
    reason: str
    sentence: str


class Paused(Struct, frozen=True):
    """Says who paused the automatic failover, why, and when (UTC seconds)."""

    by: str
    reason: str
    at: float
    until: float | None = None
    """About when it ends by itself; None: by `standfast resume` alone."""


class GivenUp(Struct, frozen=True):
    """Says how the last epoch ended; `to` None: nobody is to take over by itself."""

    by: str
    to: str | None
    surrendered: bool
    """Without a final snapshot."""


class Verified(Struct, frozen=True):
    """Says how a standby's snapshot last compared with the primary's own; `at`: UTC seconds."""

    ok: bool
    at: float
    snapshot: str
    full: bool
    """It read what is in the files."""


class Word(Struct, frozen=True):
    """Says what a standby tells of itself: whether it would take over if the primary died."""

    takes_over: bool
    reason: str
    """Reason code: why not, or what it would do."""
    sentence: str | None
    """None: nothing is in the way."""
    obstacles: tuple[str, ...]
    """What else is wrong on it."""


class Obstacle(Struct, frozen=True):
    """Says what is in the way of a promotion of this node (`node.obstacle`)."""

    check: str
    evidence: str
    fix: str
    weight: str
    """`bars` a promotion, `refuses` a switchover, or is only `told`."""


class Standby(Struct, frozen=True):
    """Says what is known of one standby's newest snapshot."""

    node: str
    age_s: float | None = None
    """None: it has no snapshot, or nobody knows how old it is."""
    taken_at: float | UnsetType | None = UNSET
    """UTC seconds; None: as for the age. UNSET: an older agent's document."""
    snapshot: str | None = None
    epoch: int | None = None
    candidate: bool = False
    verified: Verified | UnsetType | None = UNSET
    """This and the following: on the primary alone."""
    failure: str | UnsetType | None = UNSET
    """Why the last cycle failed, if it did."""
    needs_full: bool | UnsetType = UNSET
    word: Word | UnsetType | None = UNSET
    """None: it says nothing, or nothing any more. UNSET: an older agent's document."""
    on_hold: Paused | UnsetType | None = UNSET
    """Who took it out of those who take over. UNSET: as for the word."""


class Fence(Struct, frozen=True):
    """Says whether the rules are there, and for how long the port is open; None: without end."""

    in_place: bool
    open_for_s: float | None


class Move(Struct, frozen=True):
    """Says where a job of Nomad's moved, and how long it was down (`nomad.downtime.Downtime`)."""

    job: str
    source: str
    target: str
    down_s: float | None
    why: str


class NomadReport(Struct, frozen=True):
    """Says how the last round of following the role ended (`nomad.reports`); `at`: UTC seconds."""

    v: int = 1
    at: float | None = None
    role: str = "changing"
    reason: str = Reason.NOMAD_ROLE_CHANGING
    sentence: str = ""
    settled: bool = False
    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    jobs: tuple[Move, ...] = ()


class FromConsul(Struct, frozen=True):
    """Holds what Consul tells; times are UTC seconds."""

    epoch: int | None
    holder: str | None
    """None: nobody, also when the last one gave the role up in order."""
    state: str | None
    """Of the last heartbeat."""
    last_heartbeat_seen_s: float | None = None
    """None: one was found, and how old it is is not known yet."""
    unserved_s: float | None = None
    """For how long the holder has not served; None: it serves."""
    given_up: GivenUp | None = None
    since: float | None = None
    began_by: str | None = None
    """Reason code, and what an operator said."""
    lost_s: float | None = None
    paused: Paused | None = None
    standbys: tuple[Standby, ...] = ()


class FromFiles(Struct, frozen=True, kw_only=True):
    """Holds what this node's files tell; of a lease only where this node holds one."""

    highest_epoch: int = 0
    lease_remaining_s: float | None = None
    lease_trouble: str | None = None
    not_surrendered: str | None = None
    """Reason code: why it keeps a role that it can't carry out."""
    fence_flushes: int
    is_holder: bool = False
    newest_snapshot: str | None = None


class Work(Struct, frozen=True):
    """Says what the agent is doing, why this node can't serve, and what failed last."""

    busy: str | None
    sick: str | None
    trouble: str | None
    hidden: str | None = None
    """Why Consul tells nobody of this node's service, though that may be well."""


_PARTS = {"consul": "epoch", "files": "fence_flushes", "work": "sick"}
"""The parts whose keys stand among the document's own, each with one that it has at any rate."""


class Status(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Holds the whole document."""

    volume: str
    node: str
    role: str
    """Of this node: `primary`, `standby`, `changing`, `starting`, `unknown`."""
    failover: Failover | None = None
    """None: the agent has just started."""
    consul: FromConsul | None = None
    """None: Consul could not be read."""
    files: FromFiles | None = None
    """None: told by Consul alone, or the agent has just started."""
    serving: str | UnsetType | None = UNSET
    """Who serves; None: nobody, or a holder whose last heartbeat is older than a lease, or Consul
    could not be read. UNSET: there is a holder, and whether it sends heartbeats is not known yet;
    or the agent has just started, or is an older one."""
    decision: Decision | None = None
    fence: Fence | None = None
    aside: tuple[str, ...] | None = None
    """Subvolumes that are kept aside on this node."""
    obstacles: tuple[Obstacle, ...] | None = None
    """What would be in the way of a promotion here; None: it wasn't looked at yet, or this node is
    no standby."""
    work: Work | None = None
    agent: bool | None = None
    """Whether this node's agent tells it; None: it has just started."""
    nomad: NomadReport | None = None

    @property
    def holder(self) -> str | None:
        """Returns who holds the lease, alive or not; None: nobody, or it isn't known."""
        return None if self.consul is None else self.consul.holder

    @property
    def standbys(self) -> tuple[Standby, ...]:
        """Returns those that are known of."""
        return () if self.consul is None else self.consul.standbys

    @property
    def node_serves(self) -> bool:
        """Says whether this node serves, by its own agent's word; what isn't known is a no."""
        is_well = self.work is not None and self.work.sick is None
        return self.agent is True and self.role == "primary" and is_well

    def as_json(self) -> dict[str, Any]:
        """Returns the document as it is sent and printed."""
        doc: dict[str, Any] = {"v": VERSION}
        for key, value in to_builtins(self).items():
            doc |= value if key in _PARTS else {key: value}
        return doc

    @classmethod
    def parse(cls, doc: Mapping[str, Any]) -> Self:
        """Reads what `as_json` made; StandfastError for anything else."""
        parts = {name: doc if key in doc else None for name, key in _PARTS.items()}
        try:
            return convert({**doc, **parts}, cls)
        except ValidationError as error:
            raise StandfastError(
                f"the agent's answer can't be understood ({error}): is it of this version?"
            ) from error
