"""What the two ends of a replication say to each other: one JSON object per line.

    sender                                receiver
    hello    who, what volume, why   ->
                                     <-   welcome    its snapshots, free bytes; to a question
                                                     also `ages`, of each snapshot, in seconds
    begin    one snapshot            ->
                                     <-   ready
    the stream, then end of input    ->
                                     <-   published  verified, visible and on disk

A hello with the purpose `ask` is followed by a question instead, which changes nothing:

    survey                           ->
                                     <-   surveyed   what the node is and has
    digest   of which snapshot       ->
                                     <-   digested   its fingerprint, then the listing if wanted

Instead of any answer a `refusal` may come, with a stable reason and a whole message; it ends the
conversation. Both sides parse with suspicion: a foreign line is a refusal, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from standfast.consul.records import MOST_SECONDS
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason

VERSION = 1
"""Version of the lines' form."""
PROTOCOL = 2
"""Version of the conversation; both ends must speak the same."""
MAX_LINE_BYTES = 64 * 1024
MAX_OFFERED = 300
"""So many snapshots, the newest, are offered as parents: they fit one line."""
MAX_UNFINISHED = 20
MOST_PATIENCE_S = 31 * 86400
_MAX_TEXT = 255
M = TypeVar(
    "M",
    "Hello",
    "Welcome",
    "Begin",
    "Ready",
    "Published",
    "Survey",
    "Surveyed",
    "Digest",
    "Digested",
)

R = TypeVar("R")


class Purpose(StrEnum):
    """What a conversation is for."""

    SEND = "send"
    ASK = "ask"


class Compression(StrEnum):
    """Of the stream between the two ends."""

    NONE = "none"
    ZSTD = "zstd"


# A dataclass without a docstring is given one with its signature, which costs each start 1 ms.
@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, of which volume, and why."""

    cluster: str
    volume: str
    sender: str
    purpose: Purpose = Purpose.SEND
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Offer:
    """A complete snapshot on the receiver's side."""

    name: str
    content_id: str
    received: bool
    age_s: float | None = None
    """By the receiver's own count; None: not known, or not told."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the standby has, and can."""

    snapshots: tuple[Offer, ...]
    free_bytes: int
    unfinished: tuple[str, ...] = ()
    """Names of what lies there and doesn't count."""
    abilities: tuple[str, ...] = ()
    """What the receiving end can take beyond the plain stream."""
    tells_ages: bool = False
    """To who asks; an older version doesn't."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Begin:
    """The header of one snapshot."""

    cluster: str
    volume: str
    sender: str
    epoch: int
    name: SnapshotName
    content_id: str
    parent_content_id: str | None
    commons: Mapping[str, str] | None = None
    """By standby the content id of something that it has, as far as the sender knows, and if
    possible the receiver, too; None: it can't say, and nothing may be pruned."""
    size_bytes: int | None = None
    """What the stream will write, about; None: not known."""
    compression: Compression = Compression.NONE
    fingerprint: str | None = None
    """Of the metadata of the sender's snapshot: the received one must have the same."""
    patience_s: int = 3600
    """So long, from now on, the sender waits for the acknowledgement."""
    age_s: float | None = None
    """How long ago it was taken, by the sender's clock: no two clocks are compared. None: not
    known, or an older version's, which doesn't tell."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Ready:
    """Send it."""


@dataclass(frozen=True, slots=True)
class Published:
    """Verified, visible and on disk."""

    name: str
    content_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, and why; the end of the conversation."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What are you, and what is wrong with you?"""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The answer to a survey."""

    facts: Mapping[str, Any]
    """A `preflight.Facts` document; whoever reads it parses it with suspicion."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What is the fingerprint of a snapshot, with the contents of all files when `full`?"""

    content_id: str
    full: bool
    listing: bool
    """Also every entry, one a line, after the answer."""


@dataclass(frozen=True, slots=True)
class Digested:
    """The answer to a digest."""

    digest: str
    entries: int


Request = Begin | Survey | Digest
Message = Hello | Welcome | Request | Ready | Published | Surveyed | Digested | Refusal


def offers(
    snapshots: Sequence[Snapshot], ages: Mapping[str, float | None] | None = None
) -> tuple[Offer, ...]:
    """`ages`: seconds, by content id."""
    newest, known = sorted(snapshots, key=lambda one: one.name)[-MAX_OFFERED:], ages or {}
    return tuple(
        Offer(str(one.name), one.content_id, one.received, known.get(one.content_id))
        for one in newest
    )


def dump(message: Message) -> str:
    """One line, without its end."""
    match message:
        case Hello(cluster, volume, sender, purpose, protocol):
            body: dict[str, Any] = {"cluster": cluster, "volume": volume, "sender": sender}
            body |= {"purpose": str(purpose), "protocol": protocol}
        case Welcome():
            listed = [[one.name, one.content_id, one.received] for one in message.snapshots]
            body = {"snapshots": listed, "free_bytes": message.free_bytes}
            ages = [None if (s := one.age_s) is None else round(s, 1) for one in message.snapshots]
            body |= {"ages": ages} if message.tells_ages else {}
            body |= {"unfinished": list(message.unfinished[:MAX_UNFINISHED])}
            body |= {"abilities": list(message.abilities), "protocol": message.protocol}
        case Begin():
            body = {item.name: getattr(message, item.name) for item in fields(message)}
            body |= {"name": str(message.name), "compression": str(message.compression)}
            body["commons"] = None if message.commons is None else dict(message.commons)
        case Ready() | Survey():
            body = {}
        case Surveyed(facts):
            body = {"facts": dict(facts)}
        case Digest(content_id, full, listing):
            body = {"content_id": content_id, "full": full, "listing": listing}
        case Digested(digest, entries):
            body = {"digest": digest, "entries": entries}
        case Published(name, content_id):
            body = {"name": name, "content_id": content_id}
        case Refusal(reason, text):
            body = {"reason": str(reason), "message": text}
    kind = type(message).__name__.lower()
    return json.dumps({"v": VERSION, "message_type": kind, **body}, separators=(",", ":"))


def parse_hello(line: str) -> Hello:
    """Refused (protocol) for anything else; so do all the parsers here."""
    return _parse(
        line,
        Hello,
        lambda doc: Hello(
            _text(doc["cluster"]),
            _text(doc["volume"]),
            _text(doc["sender"]),
            # Version 1 had none: its number is refused by what it says, not by what it lacks.
            Purpose(doc.get("purpose", "send")),
            _number(doc["protocol"]),
        ),
    )


def parse_welcome(line: str) -> Welcome:
    def build(doc: Mapping[str, Any]) -> Welcome:
        snapshots = _list(doc["snapshots"])
        # Beside them, as an older version would refuse a longer item.
        ages = _list(doc.get("ages", [None] * len(snapshots)))
        listed = tuple(
            Offer(
                _text(name),
                _text(content_id),
                _flag(received),
                None if age_s is None else _seconds(age_s),
            )
            for (name, content_id, received), age_s in zip(snapshots, ages, strict=True)
        )
        unfinished = tuple(_words(name) for name in _list(doc["unfinished"]))
        abilities = tuple(_text(one) for one in _list(doc["abilities"]))
        free_bytes, protocol = _number(doc["free_bytes"]), _number(doc["protocol"])
        return Welcome(listed, free_bytes, unfinished, abilities, "ages" in doc, protocol)

    return _parse(line, Welcome, build)


def parse_begin(line: str) -> Begin:
    return _parse(line, Begin, _begin)


def parse_request(line: str) -> Request:
    """What follows the welcome."""
    builds: dict[str, Callable[[Mapping[str, Any]], Request]] = {
        "begin": _begin,
        "survey": _survey,
        "digest": _digest,
    }
    return _parse_one_of(line, builds)


def _begin(doc: Mapping[str, Any]) -> Begin:
    parent, fingerprint = doc["parent_content_id"], doc["fingerprint"]
    commons, size = doc["commons"], doc["size_bytes"]
    return Begin(
        cluster=_text(doc["cluster"]),
        volume=_text(doc["volume"]),
        sender=_text(doc["sender"]),
        epoch=_number(doc["epoch"]),
        name=SnapshotName.parse(_text(doc["name"])),
        content_id=_text(doc["content_id"]),
        parent_content_id=None if parent is None else _text(parent),
        commons=None if commons is None else _texts(commons),
        size_bytes=None if size is None else _number(size),
        compression=Compression(doc["compression"]),
        fingerprint=None if fingerprint is None else _text(fingerprint),
        patience_s=min(_number(doc["patience_s"]), MOST_PATIENCE_S),
        age_s=None if doc.get("age_s") is None else _seconds(doc["age_s"]),
        protocol=_number(doc["protocol"]),
    )


def _survey(_: Mapping[str, Any]) -> Survey:
    return Survey()


def _digest(doc: Mapping[str, Any]) -> Digest:
    return Digest(_text(doc["content_id"]), _flag(doc["full"]), _flag(doc["listing"]))


def parse_ready(line: str) -> Ready:
    return _parse(line, Ready, lambda _: Ready())


def parse_published(line: str) -> Published:
    return _parse(
        line, Published, lambda doc: Published(_text(doc["name"]), _text(doc["content_id"]))
    )


def parse_surveyed(line: str) -> Surveyed:
    def build(doc: Mapping[str, Any]) -> Surveyed:
        if not isinstance(doc["facts"], dict):
            raise TypeError("facts")
        return Surveyed(doc["facts"])

    return _parse(line, Surveyed, build)


def parse_digested(line: str) -> Digested:
    return _parse(
        line, Digested, lambda doc: Digested(_text(doc["digest"]), _number(doc["entries"]))
    )


def _parse(line: str, kind: type[M], build: Callable[[Mapping[str, Any]], M]) -> M:
    """The message of the kind that is expected now; the peer's own refusal is raised as such."""
    return _parse_one_of(line, {kind.__name__.lower(): build})


def _parse_one_of(line: str, builds: Mapping[str, Callable[[Mapping[str, Any]], R]]) -> R:
    expected = " or ".join(builds)
    try:
        doc = json.loads(line)
        if not isinstance(doc, dict) or doc.get("v") != VERSION:
            raise ValueError(f'no JSON object with "v": {VERSION}')
        if doc.get("message_type") == "refusal":
            refusal = Refusal(_reason(doc["reason"]), _words(doc["message"]))
        elif doc.get("message_type") not in builds:
            raise ValueError(f"expected {expected}")
        else:
            return builds[doc["message_type"]](doc)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Refused(
            Reason.PROTOCOL,
            f"the other side said something that is no {expected} of Standfast's "
            f"replication ({error}): {line[:80]!r}. Are both ends of the same version, and does "
            f"the remote shell print anything at login?",
        ) from error
    raise Refused(refusal.reason, refusal.message)


def _reason(value: Any) -> Reason:
    try:
        return Reason(value)
    except ValueError:  # of a newer version: the message says it all the same
        return Reason.REPLICATION_FAILED


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return "".join(char if char.isprintable() else " " for char in value)[:2000]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is not a short, printable text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number from 0")
    return value


def _seconds(value: Any) -> float:
    # A bool is an int, and json reads NaN and Infinity: none of them is a time.
    if type(value) not in (int, float) or not 0 <= value < MOST_SECONDS:
        raise ValueError(f"{str(value)[:40]!r} is not a number of seconds")
    return float(value)


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:40]!r} is not a table")
    return {_text(key): _text(text) for key, text in value.items()}


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is not a list")
    return value
