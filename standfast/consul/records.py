"""The values of our keys in Consul: parsed with suspicion, written in one way.

Every value is a JSON object with a `v`. Anything else (hand-written, foreign, of a newer version)
is a ForeignValue: the caller stops, nothing is overwritten. Under `standfast/<volume>/`:

    epoch            {"v": 1, "epoch": 7}                          changes only at an acquisition
    leader           {"v": 1, "epoch", "holder", "seq", "state", "candidates", "to", "note",
                      "final", "final_id", "wait", "surrendered", "unserved",
                      "idle", "operator"}
    history/<epoch>  {"v": 1, "epoch", "node", "base", "reason", "operator", "lost_s", "at",
                      "follows"}
    standbys/<node>  {"v": 1, "node", "epoch", "snapshot", "content_id", "taken_at", "at",
                      "by"}
    candidates/<node>  {"v": 1, "node", "epoch", "ready", "reason", "snapshot", "snapshot_epoch",
                      "at", "takes_over", "because", "sentence", "obstacles"}
    pause            {"v": 1, "by", "reason", "at", "lasts"}
    holds/<node>     {"v": 1, "node", "by", "reason", "at"}
    nomad/<node id>  {"v": 1, "node", "by", "epoch", "at", "firm", "ahead"}
    requests/<id>, outcomes/<id>, requests: see `requests/record.py`

Under `standfast-clients/<volume>/`, shown and never acted on:

    <node>           {"v": 1, "node", "server", "epoch", "state", "at"}
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from msgspec import Struct

from standfast.ages import time_by_record, time_of
from standfast.consul.record import (
    MOST_SECONDS,
    Lenient,
    Name,
    Number,
    Record,
    Seconds,
    Text,
    is_not_false,
    is_true,
    shown_lines,
    shown_seconds,
    shown_text,
    shown_texts,
)
from standfast.names import SnapshotName
from standfast.reasons import Reason
from standfast.system.clock import format_utc


class LeaderState(StrEnum):
    """What the holder says of itself; only CLEAN has a meaning for others."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    CLEAN = "clean"


class Holder(Struct, frozen=True):
    """A node in one of its boots: two machines with one name don't pass for each other."""

    node: Name
    instance: Name


class Handover(Struct, frozen=True):
    """What a primary says when it gives the role up in order."""

    to: str | None = None
    """The node that is to take over; None: nobody does by itself."""
    note: str | None = None
    """The operator's reason; the successor writes it to the history."""
    final: str | None = None
    """Name of the snapshot that has everything."""
    final_id: str | None = None
    """... and its content id: a name says when, not what."""
    surrendered: bool = False
    """It can't serve, and has no such snapshot: what it wrote last is lost to the next one."""
    unserved: float = 0.0
    """With any state: for how long it has not served, seconds; 0: it serves."""
    idle: bool = False
    """With any state: it has never served in this epoch, so it wrote nothing that could be lost."""
    operator: str | None = None
    """Who asked for it; the successor writes that to the history, too. None: nobody did."""


class Leader(Record, frozen=True):
    """One heartbeat."""

    default_key = "leader"
    lenient: ClassVar[Lenient] = {"surrendered": is_true, "idle": is_true, "operator": shown_text}
    shown = ("note",)

    epoch: Number
    holder: Holder
    seq: Number
    state: LeaderState
    candidates: tuple[Name, ...]
    to: Name | None = None
    note: Text | None = None
    final: Name | None = None
    """With CLEAN, these three and `final_id`: see Handover."""
    wait: Seconds = 0.0
    """The holder's own W, seconds: unheard of for so long it serves no more, whatever a candidate's
    configuration says. 0: an older version's, which doesn't tell."""
    final_id: Name | None = None
    """None: an older version's, which tells only the name."""
    surrendered: bool = False
    unserved: Seconds = 0.0
    idle: bool = False
    operator: str | None = None
    """These four: see Handover. An older version tells no operator."""

    @property
    def identity(self) -> tuple[int, str, str, int]:
        """Returns what a candidate has to see unchanged for W: (epoch, node, instance, seq)."""
        return (self.epoch, self.holder.node, self.holder.instance, self.seq)

    @property
    def is_clean(self) -> bool:
        return self.state is LeaderState.CLEAN

    def gives_up(self, epoch: int | None) -> bool:
        """Tells whether it is the orderly end of this very epoch: nobody serves, nothing to wait
        for.

        Where the epoch's key is gone or tells of a later epoch, an old `clean` proves nothing.
        """
        return self.is_clean and self.epoch == epoch

    def fields(self) -> dict[str, Any]:
        fields = {**super().fields(), "to": self.to, "unserved": round(self.unserved, 1)}
        if not fields["unserved"]:
            del fields["unserved"]
        return fields


def longest_wait_s(leader: Leader | None, wait_s: float) -> float:
    """Returns the seconds without a heartbeat after which a lease is over: by its holder's W and by
    ours, `wait_s`.

    They differ while a configuration is changed node by node.
    """
    return wait_s if leader is None else max(wait_s, leader.wait)


def is_epoch(text: str) -> bool:
    """Tells whether the last part of a history's key is a number of ours."""
    return text.isascii() and text.isdigit() and len(text) < 16


class HistoryEntry(Record, frozen=True):
    """One entry of the history: who took over, from what, why, and what was lost."""

    default_key = "history"
    named_by = "epoch"
    shown = ("reason", "operator")

    epoch: Number
    node: Name
    base: Name | None
    reason: Text
    operator: Text | None
    lost_s: Seconds | None
    """At most so much was written after `base`, to the end of the old primary's lease; None: not
    known."""
    at: Seconds
    follows: Number | None = None
    """The epoch whose data it goes on from, where those since were given up without ever having
    served; None: the one right before."""

    @property
    def before(self) -> int:
        """Returns the epoch whose data it goes on from."""
        return self.epoch - 1 if self.follows is None else self.follows

    @property
    def is_automatic(self) -> bool:
        """Tells whether it began by itself, without an operator's word."""
        return self.reason.partition(":")[0] in (Reason.TAKEOVER, Reason.SURRENDERED)

    def check(self) -> None:
        if self.follows is not None and self.follows >= self.epoch:
            raise ValueError(f"epoch {self.epoch} can't follow {self.follows}")


class StandbyRecord(Record, frozen=True):
    """What the primary knows a standby to have on disk: written after the acknowledgement."""

    default_key = "standbys"
    named_by = "node"
    lenient: ClassVar[Lenient] = {"taken_at": shown_seconds, "by": shown_text}

    node: Name
    epoch: Number
    snapshot: Name
    content_id: Name
    at: Seconds
    taken_at: Seconds | None = None
    """When the snapshot was taken, UTC seconds by the primary's clock; None: an older version's, of
    which only the name is known."""
    by: str | None = None
    """The primary that wrote it; None: an older version's."""

    @property
    def time(self) -> float | None:
        """Returns when it was taken by the primary's clock, UTC seconds, the older of two words;
        None: its name is none."""
        try:
            return time_of(SnapshotName.parse(self.snapshot), self.taken_at)
        except ValueError:
            return None

    def believed_time(self, utc: float) -> float | None:
        """The same, to a node whose clock says `utc`; UNKNOWN where one of the clocks was wrong."""
        return None if (at := self.time) is None else time_by_record(at, self.at, utc)


class Pause(Record, frozen=True):
    """While it exists nobody takes over by itself."""

    default_key = "pause"
    shown = ("by", "reason")

    by: Text
    reason: Text
    at: Seconds
    lasts: Seconds | None = None
    """A node that has seen it for so long, on its own clock, deletes it; None: nobody does."""

    @property
    def until(self) -> float | None:
        """Returns when that is about to be, UTC seconds by the clock of who set it; None: never."""
        return None if self.lasts is None else self.at + self.lasts

    def span(self) -> str:
        """Returns since when it is and until when, for people."""
        end = "" if self.until is None else f", until about {format_utc(self.until)}"
        return f"since {format_utc(self.at)}{end}"

    def check(self) -> None:
        if self.lasts is not None and self.at + self.lasts >= MOST_SECONDS:
            raise ValueError("it ends after the year 9999")


class Hold(Record, frozen=True):
    """While it exists its node doesn't take over by itself, and nobody waits for it."""

    default_key = "holds"
    named_by = "node"
    shown = ("by", "reason")

    node: Name
    by: Text
    reason: Text
    at: Seconds


class CandidateRecord(Record, frozen=True):
    """What a standby says of itself: whether it would take over if the holder gave the role up, and
    if it died without a word."""

    default_key = "candidates"
    named_by = "node"
    lenient: ClassVar[Lenient] = {
        "ready": is_true,
        "takes_over": is_true,
        "because": shown_text,
        "sentence": shown_lines,
        "obstacles": shown_texts,
    }
    shown = ("reason",)

    node: Name
    epoch: Number
    """Of the epoch that it would end."""
    ready: bool
    reason: Text
    """A reason code: why not, or what it would do."""
    snapshot: Name | None
    snapshot_epoch: Number
    at: Seconds
    takes_over: bool | None = None
    """If the holder died, by itself and as soon as it may. None: an older version's, which doesn't
    tell."""
    because: str | None = None
    """A reason code: why not, or what it would do then."""
    sentence: str | None = None
    """The same for people."""
    obstacles: tuple[str, ...] = ()
    """What else is wrong on that node, for people."""


class ClientRecord(Record, frozen=True):
    """What a client says of its mount, for people to look at; nothing is decided on it."""

    default_key = "clients"
    named_by = "node"
    shown = ("state",)

    node: Name
    server: Name | None
    """Node, or else address, that the mount is of; None: nothing is mounted, or not known."""
    epoch: Number | None
    """Epoch that it was mounted in."""
    state: Text
    """A reason code."""
    at: Seconds
    """When it was written, by the client's clock."""


class NomadNote(Record, frozen=True, omit_defaults=False):
    """Says that we made a node of Nomad ineligible and may lift that.

    It is written before and deleted after. A node that was ineligible already never gets one.
    """

    default_key = "nomad"
    lenient: ClassVar[Lenient] = {"firm": is_not_false, "ahead": is_true}

    node: Name
    """Its name."""
    by: Name
    """The node that did it."""
    epoch: Number
    """The epoch in which it was done; 0: by the node itself."""
    at: Seconds
    firm: bool = True
    """It has been done; else it is about to be, by another node."""
    ahead: bool = False
    """It is to be the next primary, and shows the meta already."""


class _Epoch(Record, frozen=True):
    default_key = "epoch"

    epoch: Number


def dump_epoch(epoch: int) -> bytes:
    """Returns the value of the key `epoch`."""
    return _Epoch(epoch).dump()


def parse_epoch(raw: bytes, key: str = "epoch") -> int:
    """Returns the epoch in a value of that key; ForeignValue."""
    return _Epoch.parse(raw, key).epoch
