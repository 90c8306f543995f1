"""The values under `standfast/<volume>/` in Consul: parsed with suspicion, written in one way.

Every value is a JSON object with a `v`. Anything else (hand-written, foreign, of a newer version)
is a ForeignValue: the caller stops, nothing is overwritten.

    epoch            {"v": 1, "epoch": 7}                          changes only at an acquisition
    leader           {"v": 1, "epoch", "holder", "seq", "state", "candidates", "to", "note",
                      "final", "final_id", "wait", "surrendered", "unserved",
                      "idle"}
    history/<epoch>  {"v": 1, "epoch", "node", "base", "reason", "operator", "lost_s", "at",
                      "follows"}
    standbys/<node>  {"v": 1, "node", "epoch", "snapshot", "content_id", "taken_at", "at",
                      "by"}
    candidates/<node>  {"v": 1, "node", "epoch", "ready", "reason", "snapshot", "snapshot_epoch",
                      "at"}
    pause            {"v": 1, "by", "reason", "at"}
    clients/<node>   {"v": 1, "node", "server", "epoch", "state", "at"}   shown, never acted on
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from standfast.ages import time_by_record, time_of
from standfast.errors import ForeignValue
from standfast.names import SnapshotName
from standfast.reasons import Reason

VERSION = 1
MOST_SECONDS = 253_402_300_800  # the year 10000 can't be printed
T = TypeVar("T")


class LeaderState(StrEnum):
    """What the holder says of itself; only CLEAN has a meaning for others."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Holder:
    """A node in one of its boots: two machines with one name don't pass for each other."""

    node: str
    instance: str


@dataclass(frozen=True, slots=True)
class Handover:
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


@dataclass(frozen=True, slots=True)
class Leader:
    """One heartbeat."""

    epoch: int
    holder: Holder
    seq: int
    state: LeaderState
    candidates: tuple[str, ...] = ()
    to: str | None = None
    note: str | None = None
    final: str | None = None
    """With CLEAN, these three and `final_id`: see Handover."""
    wait: float = 0.0
    """The holder's own W, seconds: unheard of for so long it serves no more, whatever a candidate's
    configuration says. 0: an older version's, which doesn't tell."""
    final_id: str | None = None
    """None: an older version's, which tells only the name."""
    surrendered: bool = False
    unserved: float = 0.0
    idle: bool = False
    """These three: see Handover."""

    @property
    def identity(self) -> tuple[int, str, str, int]:
        """What a candidate has to see unchanged for W: (epoch, node, instance, seq)."""
        return (self.epoch, self.holder.node, self.holder.instance, self.seq)

    @property
    def is_clean(self) -> bool:
        return self.state is LeaderState.CLEAN

    def gives_up(self, epoch: int | None) -> bool:
        """Whether it is the orderly end of this very epoch: nobody serves, nothing to wait for.

        Where the epoch's key is gone or tells of a later epoch, an old `clean` proves nothing.
        """
        return self.is_clean and self.epoch == epoch

    def dump(self) -> bytes:
        return _dump(
            epoch=self.epoch,
            holder={"node": self.holder.node, "instance": self.holder.instance},
            seq=self.seq,
            state=str(self.state),
            candidates=list(self.candidates),
            to=self.to,
            **{
                name: text
                for name in ("note", "final", "final_id")
                if (text := getattr(self, name)) is not None
            },
            **({"wait": self.wait} if self.wait else {}),
            **({"surrendered": True} if self.surrendered else {}),
            **({"unserved": round(self.unserved, 1)} if self.unserved else {}),
            **({"idle": True} if self.idle else {}),
        )

    @classmethod
    def parse(cls, raw: bytes, key: str = "leader") -> Leader:
        def build(doc: Mapping[str, Any]) -> Leader:
            holder = doc["holder"]
            return cls(
                epoch=_number(doc["epoch"]),
                holder=Holder(_text(holder["node"]), _text(holder["instance"])),
                seq=_number(doc["seq"]),
                state=LeaderState(doc["state"]),
                candidates=tuple(_text(name) for name in _list(doc["candidates"])),
                to=_optional(doc.get("to")),
                note=_optional(doc.get("note")),
                final=_optional(doc.get("final")),
                wait=_seconds(doc.get("wait", 0)),
                final_id=_optional(doc.get("final_id")),
                surrendered=doc.get("surrendered") is True,
                unserved=_seconds(doc.get("unserved", 0)),
                idle=doc.get("idle") is True,
            )

        return _parse(raw, key, build)


def longest_wait_s(leader: Leader | None, wait_s: float) -> float:
    """After so long without a heartbeat a lease is over: by its holder's W and by ours, `wait_s`.

    They differ while a configuration is changed node by node.
    """
    return wait_s if leader is None else max(wait_s, leader.wait)


def highest_epoch(values: Mapping[str, bytes]) -> int:
    """The highest epoch that any of the volume's keys tells of; 0: none does.

    `values` is by the key's name below the volume's prefix. The epoch's own key may be gone or
    written by hand: none of these numbers may be given to an epoch again. ForeignValue.
    """
    found = [0]
    for name, raw in values.items():
        kind, _, rest = name.partition("/")
        if name == "epoch":
            found.append(parse_epoch(raw, name))
        elif name == "leader":
            found.append(Leader.parse(raw, name).epoch)
        elif kind == "history" and is_epoch(rest):
            found.append(int(rest))
        elif kind == "standbys" and rest:
            found.append(StandbyRecord.parse(raw, name).epoch)
    return max(found)


def is_epoch(text: str) -> bool:
    """Whether the last part of a history's key is a number of ours."""
    return text.isascii() and text.isdigit() and len(text) < 16


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One entry of the history: who took over, from what, why, and what was lost."""

    epoch: int
    node: str
    base: str | None
    reason: str
    operator: str | None
    lost_s: float | None
    """At most so much was written after `base`, to the end of the old primary's lease; None: not
    known."""
    at: float
    follows: int | None = None
    """The epoch whose data it goes on from, where those since were given up without ever having
    served; None: the one right before."""

    @property
    def before(self) -> int:
        """The epoch whose data it goes on from."""
        return self.epoch - 1 if self.follows is None else self.follows

    @property
    def is_automatic(self) -> bool:
        """Whether it began by itself, without an operator's word."""
        return self.reason.partition(":")[0] in (Reason.TAKEOVER, Reason.SURRENDERED)

    def dump(self) -> bytes:
        return _dump(
            epoch=self.epoch,
            node=self.node,
            base=self.base,
            reason=self.reason,
            operator=self.operator,
            lost_s=self.lost_s,
            at=self.at,
            **({} if self.follows is None else {"follows": self.follows}),
        )

    @classmethod
    def parse(cls, raw: bytes, key: str = "history") -> HistoryEntry:
        return _parse(
            raw,
            key,
            lambda doc: cls(
                epoch=_number(doc["epoch"]),
                node=_text(doc["node"]),
                base=None if doc["base"] is None else _text(doc["base"]),
                reason=_text(doc["reason"]),
                operator=None if doc["operator"] is None else _text(doc["operator"]),
                lost_s=None if doc["lost_s"] is None else _seconds(doc["lost_s"]),
                at=_seconds(doc["at"]),
                follows=_earlier(doc.get("follows"), _number(doc["epoch"])),
            ),
        )


def _earlier(value: Any, epoch: int) -> int | None:
    """None, or an epoch before `epoch`; ValueError."""
    if value is not None and not 0 <= _number(value) < epoch:
        raise ValueError(f"epoch {epoch} can't follow {value}")
    return None if value is None else _number(value)


@dataclass(frozen=True, slots=True)
class StandbyRecord:
    """What the primary knows a standby to have on disk: written after the acknowledgement."""

    node: str
    epoch: int
    snapshot: str
    content_id: str
    at: float
    taken_at: float | None = None
    """When the snapshot was taken, UTC seconds by the primary's clock; None: an older version's, of
    which only the name is known."""
    by: str | None = None
    """The primary that wrote it; None: an older version's."""

    def dump(self) -> bytes:
        return _dump(
            node=self.node,
            epoch=self.epoch,
            snapshot=self.snapshot,
            content_id=self.content_id,
            at=self.at,
            **({} if self.taken_at is None else {"taken_at": self.taken_at}),
            **({} if self.by is None else {"by": self.by}),
        )

    @property
    def time(self) -> float | None:
        """When it was taken by the primary's clock, UTC seconds, the older of two words; None: its
        name is none."""
        try:
            return time_of(SnapshotName.parse(self.snapshot), self.taken_at)
        except ValueError:
            return None

    def believed_time(self, utc: float) -> float | None:
        """The same, to a node whose clock says `utc`; UNKNOWN where one of the clocks was wrong."""
        return None if (at := self.time) is None else time_by_record(at, self.at, utc)

    @classmethod
    def parse(cls, raw: bytes, key: str = "standbys") -> StandbyRecord:
        return _parse(
            raw,
            key,
            lambda doc: cls(
                node=_text(doc["node"]),
                epoch=_number(doc["epoch"]),
                snapshot=_text(doc["snapshot"]),
                content_id=_text(doc["content_id"]),
                at=_seconds(doc["at"]),
                taken_at=shown_seconds(doc.get("taken_at")),
                by=by if isinstance(by := doc.get("by"), str) else None,
            ),
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """While it exists nobody takes over by itself."""

    by: str
    reason: str
    at: float

    def dump(self) -> bytes:
        return _dump(by=self.by, reason=self.reason, at=self.at)

    @classmethod
    def parse(cls, raw: bytes, key: str = "pause") -> Pause:
        return _parse(
            raw, key, lambda doc: cls(_text(doc["by"]), _text(doc["reason"]), _seconds(doc["at"]))
        )


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """What a standby says of itself: whether it would take over if the holder gave the role up."""

    node: str
    epoch: int
    """Of the epoch that it would end."""
    ready: bool
    reason: str
    """A reason code: why not, or what it would do."""
    snapshot: str | None
    snapshot_epoch: int
    at: float

    def dump(self) -> bytes:
        return _dump(
            node=self.node,
            epoch=self.epoch,
            ready=self.ready,
            reason=self.reason,
            snapshot=self.snapshot,
            snapshot_epoch=self.snapshot_epoch,
            at=self.at,
        )

    @classmethod
    def parse(cls, raw: bytes, key: str = "candidates") -> CandidateRecord:
        return _parse(
            raw,
            key,
            lambda doc: cls(
                node=_text(doc["node"]),
                epoch=_number(doc["epoch"]),
                ready=doc["ready"] is True,
                reason=_text(doc["reason"]),
                snapshot=_optional(doc["snapshot"]),
                snapshot_epoch=_number(doc["snapshot_epoch"]),
                at=_seconds(doc["at"]),
            ),
        )


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What a client says of its mount, for people to look at; nothing is decided on it."""

    node: str
    server: str | None
    """Node, or else address, that the mount is of; None: nothing is mounted, or not known."""
    epoch: int | None
    """Epoch that it was mounted in."""
    state: str
    """A reason code."""
    at: float
    """When it was written, by the client's clock."""

    def dump(self) -> bytes:
        return _dump(
            node=self.node, server=self.server, epoch=self.epoch, state=self.state, at=self.at
        )

    @classmethod
    def parse(cls, raw: bytes, key: str = "clients") -> ClientRecord:
        return _parse(
            raw,
            key,
            lambda doc: cls(
                node=_text(doc["node"]),
                server=_optional(doc["server"]),
                epoch=None if doc["epoch"] is None else _number(doc["epoch"]),
                state=_text(doc["state"]),
                at=_seconds(doc["at"]),
            ),
        )


def dump_epoch(epoch: int) -> bytes:
    return _dump(epoch=epoch)


def parse_epoch(raw: bytes, key: str = "epoch") -> int:
    return _parse(raw, key, lambda doc: _number(doc["epoch"]))


def _dump(**fields: Any) -> bytes:
    return json.dumps({"v": VERSION, **fields}, separators=(",", ":")).encode()


def _parse(raw: bytes, key: str, build: Callable[[Mapping[str, Any]], T]) -> T:
    shown = raw[:80].decode("utf-8", "replace")
    try:
        doc = json.loads(raw)
        if not isinstance(doc, dict) or type(doc.get("v")) is not int or doc["v"] != VERSION:
            raise ValueError(f'it is not a JSON object with "v": {VERSION}')
        return build(doc)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ForeignValue(
            f"{key} in Consul holds a value that Standfast did not write ({error!r}): {shown!r}. "
            f"Nothing was changed. Look at it with `consul kv get`, and restore or delete it."
        ) from error


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return value


def shown_seconds(value: Any) -> float | None:
    """Of what is only shown: None for a time that is none, which makes no record foreign."""
    try:
        return None if value is None else _seconds(value)
    except ValueError:
        return None


def _seconds(value: Any) -> float:
    # A bool is an int, and json reads NaN and Infinity: none of them is a time.
    if type(value) not in (int, float) or not 0 <= value < MOST_SECONDS:
        raise ValueError(f"{value!r} is not a number of seconds from 0 to the year 9999")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a non-empty text")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value
