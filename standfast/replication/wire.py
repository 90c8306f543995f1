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
    inspect                          ->
                                     <-   inspected  what a promotion of it would meet
    digest   of which snapshot       ->
                                     <-   digested   its fingerprint, then the listing if wanted

Instead of any answer a `refusal` may come, with a stable reason and a whole message; it ends the
conversation. Both sides parse with suspicion: a foreign line is a refusal, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, convert, field, to_builtins
from msgspec.structs import replace

from standfast.consul.record import MOST_SECONDS
from standfast.errors import Refused
from standfast.names import SnapshotName
from standfast.node.obstacle import Obstacle
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.text import check_printable, clean

VERSION = 1
"""Version of the lines' form."""
PROTOCOL = 2
"""Version of the conversation; both ends must speak the same."""
MAX_LINE_BYTES = 64 * 1024
MAX_OFFERED = 300
"""So many snapshots, the newest, are offered as parents: they fit one line."""
MAX_UNFINISHED = 20
MOST_MESSAGE = 2000
"""Characters of a refusal that are shown."""
MOST_PATIENCE_S = 31 * 86400
_MAY_LACK = frozenset({"purpose", "age_s", "ages"})
"""Fields that came later than their messages: an older version's line has none of them."""
_SHOWN_CLEAN = frozenset({"unfinished", "facts", "obstacles"})
"""Fields with texts that may be anything: whoever shows or parses them cleans them."""

Text = Annotated[str, Meta(min_length=1, max_length=255)]
"""Printable, too."""
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, lt=MOST_SECONDS)]
M = TypeVar("M", bound="_Message")


class Purpose(StrEnum):
    """What a conversation is for."""

    SEND = "send"
    ASK = "ask"


class Compression(StrEnum):
    """How the stream between the two ends is compressed."""

    NONE = "none"
    ZSTD = "zstd"


class _Message(Struct, frozen=True, tag_field="message_type", tag=str.lower):
    """One line. A default is the writer's: a reader takes it only for what a line may lack."""


class Hello(_Message, frozen=True):
    """Says who speaks, of which volume, and why."""

    cluster: Text
    volume: Text
    sender: Text
    purpose: Purpose = Purpose.SEND
    """Version 1 had none: its number is refused by what it says, not by what it lacks."""
    protocol: Whole = PROTOCOL


class Offer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A complete snapshot on the receiver's side."""

    name: Text
    content_id: Text
    received: bool


class Welcome(_Message, frozen=True):
    """Says what the standby has, and can."""

    snapshots: tuple[Offer, ...]
    free_bytes: Whole
    unfinished: tuple[str, ...] = ()
    """Names of what lies there and doesn't count."""
    abilities: tuple[Text, ...] = ()
    """What the receiving end can take beyond the plain stream."""
    ages: tuple[Seconds | None, ...] | UnsetType = UNSET
    """Of each snapshot, by the receiver's own count, None where that isn't known; told to who asks,
    but not by an older version. Beside the offers, as that one would refuse a longer item."""
    protocol: Whole = PROTOCOL

    def __post_init__(self) -> None:
        if self.ages is not UNSET and len(self.ages) != len(self.snapshots):
            raise ValueError(f"{len(self.ages)} ages of {len(self.snapshots)} snapshots")


class Begin(_Message, frozen=True):
    """Announces one snapshot."""

    cluster: Text
    volume: Text
    sender: Text
    epoch: Whole
    snapshot: Text = field(name="name")
    content_id: Text
    parent_content_id: Text | None
    commons: Mapping[Text, Text] | None = None
    """By standby the content id of something that it has, as far as the sender knows, and if
    possible the receiver, too; None: it can't say, and nothing may be pruned."""
    size_bytes: Whole | None = None
    """What the stream will write, about; None: not known."""
    compression: Compression = Compression.NONE
    fingerprint: Text | None = None
    """Of the metadata of the sender's snapshot: the received one must have the same."""
    patience_s: Whole = 3600
    """So long, from now on, the sender waits for the acknowledgement; see `MOST_PATIENCE_S`."""
    age_s: Seconds | None = None
    """How long ago it was taken, by the sender's clock: no two clocks are compared. None: not
    known, or an older version's, which doesn't tell."""
    protocol: Whole = PROTOCOL

    def __post_init__(self) -> None:
        SnapshotName.parse(self.snapshot)

    @property
    def name(self) -> SnapshotName:
        return SnapshotName.parse(self.snapshot)


class Ready(_Message, frozen=True):
    """Asks for the stream."""


class Published(_Message, frozen=True):
    """Acknowledges the snapshot: it is verified, visible and on disk."""

    name: Text
    content_id: Text


class Refusal(_Message, frozen=True):
    """Says no, and why; the conversation ends with it."""

    reason: Any
    """A `Reason`; anything else is taken for one of a newer version."""
    message: str
    bound: str | None = None
    """The node whose key it is by the key's own line; None: an old line doesn't say."""


class Survey(_Message, frozen=True):
    """Asks what the node is, and what is wrong with it."""


class Surveyed(_Message, frozen=True):
    """Answers a survey."""

    facts: dict[str, Any]
    """A `storage_facts.Facts` document; whoever reads it parses it with suspicion."""


class Inspect(_Message, frozen=True):
    """Asks what a promotion of the node would meet, by looking now."""


class Inspected(_Message, frozen=True):
    """Answers an inspection."""

    obstacles: tuple[Obstacle, ...]


class Digest(_Message, frozen=True):
    """Asks for the fingerprint of a snapshot, with the contents of all files when `full`."""

    content_id: Text
    full: bool
    listing: bool
    """Also every entry, one a line, after the answer."""


class Digested(_Message, frozen=True):
    """Answers a digest."""

    digest: Text
    entries: Whole


Request = Begin | Survey | Inspect | Digest
Message = Hello | Welcome | Request | Ready | Published | Surveyed | Inspected | Digested | Refusal


def offers(snapshots: Sequence[Snapshot]) -> tuple[Offer, ...]:
    """Returns the newest snapshots as offers, in order."""
    newest = sorted(snapshots, key=lambda snapshot: snapshot.name)[-MAX_OFFERED:]
    return tuple(Offer(str(own.name), own.content_id, own.received) for own in newest)


def dump(message: Message) -> str:
    """Returns a message as one line, without its end."""
    # Its own JSON can't have surrogates, which a file's name in a message may bring.
    return json.dumps({"v": VERSION, **to_builtins(message)}, separators=(",", ":"))


def parse(line: str, kind: type[M]) -> M:
    """Returns the message of the kind that is expected now; Refused with the peer's own refusal.

    Refused (protocol) for anything else.
    """
    message: M = _parse(line, kind.__name__.lower(), kind | Refusal)
    return message


def parse_request(line: str) -> Request:
    """Returns the request that follows the welcome; raises what `parse` does."""
    request: Request = _parse(line, "begin or a question", Request | Refusal)
    return request


def _parse(line: str, expected: str, kinds: Any) -> Any:
    try:
        doc = json.loads(line)
        if not isinstance(doc, dict) or doc.get("v") != VERSION:
            raise ValueError(f'no JSON object with "v": {VERSION}')
        message = convert(doc, kinds)
        if not isinstance(message, Refusal):
            _check(doc, message)
    except (ValueError, RecursionError, OverflowError) as error:
        raise Refused(
            Reason.PROTOCOL,
            f"the other side said something that is no {expected} of Standfast's "
            f"replication ({clean(str(error), 200)}): {line[:80]!r}. Are both ends of the "
            f"same version, and does the remote shell print anything at login?",
        ) from error
    if isinstance(message, Refusal):
        raise Refused(
            _reason(message.reason), clean(message.message.replace("\n", " "), MOST_MESSAGE)
        )
    return message


def _check(doc: Mapping[str, Any], message: _Message) -> None:
    """ValueError for what can't be declared."""
    fields = zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True)
    for name, key in fields:
        if key not in doc and key not in _MAY_LACK:
            raise ValueError(f"Object missing required field `{key}`")
        if key not in _SHOWN_CLEAN:
            check_printable(getattr(message, name), key)


def in_short(refusal: Refusal, node: str) -> Refusal:
    """Returns what a stranger is told: no holder, no epoch, no name, but the reason code."""
    line = ""
    if refusal.bound is None:
        line = (
            f"; the key's line there names no node: `standfast standby add {node}` has one to put"
        )
    return replace(refusal, message=f"the journal of {node} says more{line}")


def _reason(value: Any) -> Reason:
    try:
        return Reason(value)
    except ValueError:  # of a newer version: the message says it all the same
        return Reason.REPLICATION_FAILED
