"""What the two ends of a replication say to each other: one JSON object per line.

    sender                                receiver
    hello    who and what volume     ->
                                     <-   welcome    its snapshots, free bytes
    begin    one snapshot            ->
                                     <-   ready
    the stream, then end of input    ->
                                     <-   published  verified, visible and on disk

Instead of any answer a `refusal` may come, with a stable reason and a whole message; it ends the
conversation. Both sides parse with suspicion: a foreign line is a refusal, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from standfast.act.ports import Snapshot
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.reasons import Reason

VERSION = 1
"""Version of the lines' form."""
PROTOCOL = 1
"""Version of the conversation; both ends must speak the same."""
MAX_LINE_BYTES = 64 * 1024
MAX_OFFERED = 300
"""So many snapshots, the newest, are offered as parents: they fit one line."""
_MAX_TEXT = 255
M = TypeVar("M", "Hello", "Welcome", "Begin", "Ready", "Published", "Refusal")


@dataclass(frozen=True, slots=True)
class Hello:
    cluster: str
    volume: str
    sender: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Offer:
    """A complete snapshot on the receiver's side."""

    name: str
    content_id: str
    received: bool


@dataclass(frozen=True, slots=True)
class Welcome:
    snapshots: tuple[Offer, ...]
    free_bytes: int
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
    keep: tuple[str, ...] | None = None
    """Content ids that standbys have in common with the sender; None: nothing may be pruned."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Published:
    name: str
    content_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: Reason
    message: str


Message = Hello | Welcome | Begin | Ready | Published | Refusal


def offers(snapshots: tuple[Snapshot, ...] | list[Snapshot]) -> tuple[Offer, ...]:
    newest = sorted(snapshots, key=lambda one: one.name)[-MAX_OFFERED:]
    return tuple(Offer(str(one.name), one.content_id, one.received) for one in newest)


def dump(message: Message) -> str:
    """One line, without its end."""
    match message:
        case Hello(cluster, volume, sender, protocol):
            body: dict[str, Any] = {"cluster": cluster, "volume": volume, "sender": sender}
            body["protocol"] = protocol
        case Welcome(snapshots, free_bytes, protocol):
            listed = [[one.name, one.content_id, one.received] for one in snapshots]
            body = {"snapshots": listed, "free_bytes": free_bytes, "protocol": protocol}
        case Begin():
            body = {
                "cluster": message.cluster,
                "volume": message.volume,
                "sender": message.sender,
                "epoch": message.epoch,
                "name": str(message.name),
                "content_id": message.content_id,
                "parent_content_id": message.parent_content_id,
                "keep": None if message.keep is None else list(message.keep),
                "protocol": message.protocol,
            }
        case Ready():
            body = {}
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
            _number(doc["protocol"]),
        ),
    )


def parse_welcome(line: str) -> Welcome:
    def build(doc: Mapping[str, Any]) -> Welcome:
        listed = tuple(
            Offer(_text(name), _text(content_id), _flag(received))
            for name, content_id, received in _list(doc["snapshots"])
        )
        return Welcome(listed, _number(doc["free_bytes"]), _number(doc["protocol"]))

    return _parse(line, Welcome, build)


def parse_begin(line: str) -> Begin:
    def build(doc: Mapping[str, Any]) -> Begin:
        parent, keep = doc["parent_content_id"], doc["keep"]
        return Begin(
            cluster=_text(doc["cluster"]),
            volume=_text(doc["volume"]),
            sender=_text(doc["sender"]),
            epoch=_number(doc["epoch"]),
            name=SnapshotName.parse(_text(doc["name"])),
            content_id=_text(doc["content_id"]),
            parent_content_id=None if parent is None else _text(parent),
            keep=None if keep is None else tuple(_text(one) for one in _list(keep)),
            protocol=_number(doc["protocol"]),
        )

    return _parse(line, Begin, build)


def parse_ready(line: str) -> Ready:
    return _parse(line, Ready, lambda _: Ready())


def parse_published(line: str) -> Published:
    return _parse(
        line, Published, lambda doc: Published(_text(doc["name"]), _text(doc["content_id"]))
    )


def _parse(line: str, kind: type[M], build: Any) -> M:
    """The message of the kind that is expected now; the peer's own refusal is raised as such."""
    try:
        doc = json.loads(line)
        if not isinstance(doc, dict) or doc.get("v") != VERSION:
            raise ValueError(f'no JSON object with "v": {VERSION}')
        if doc.get("message_type") == "refusal":
            refusal = Refusal(_reason(doc["reason"]), _words(doc["message"]))
        elif doc.get("message_type") != kind.__name__.lower():
            raise ValueError(f"expected {kind.__name__.lower()}")
        else:
            result: M = build(doc)
            return result
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Refused(
            Reason.PROTOCOL,
            f"the other side said something that is no {kind.__name__.lower()} of Standfast's "
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


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is not a list")
    return value
