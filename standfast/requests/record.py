"""What is asked of a node through Consul, and what came of it: two values, parsed with suspicion.

    requests/<id>   {"v": 1, "id", "verb", "node", "by", "beat", "arguments", "taken"}
    outcomes/<id>   {"v": 1, "id", "node", "run", "beat", "first", "progress", "ended", "exit_code",
                     "text", "error", "reason", "document"}
    requests        {"v": 1, "id"}       the newest request: nodes wait for its change

Invariant: a request with an argument that this version doesn't know is foreign. It would be carried
out otherwise than it was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from standfast.consul.record import (
    Lenient,
    Name,
    Number,
    Record,
    Text,
    is_true,
    shown_text,
    shown_texts,
)
from standfast.errors import ForeignValue
from standfast.text import clean_lines

REQUESTS = "requests/"
OUTCOMES = "outcomes/"
BELL = "requests"
MOST_REQUEST_BYTES = 8 * 1024
MOST_TEXT = 64 * 1024
"""Characters of an outcome's text. Consul takes values of 512 KiB, and a transaction is a third
larger."""
MOST_DOCUMENT = 192 * 1024
MOST_LIMIT_S = 86400.0
_ID = re.compile(r"[0-9a-f]{32}")

NodeName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""It becomes an argument of a program: it is no option."""
Words = Annotated[str, Meta(min_length=1, max_length=500)]


class Verb(StrEnum):
    """What can be asked: the commands' names."""

    PROMOTE = "promote"
    SWITCHOVER = "switchover"
    FAILBACK = "failback"
    DEMOTE = "demote"
    REPLICATE = "replicate"
    STANDBY_ADD = "standby add"
    STANDBY_REMOVE = "standby remove"
    DOCTOR = "doctor"


ROLE = frozenset((Verb.PROMOTE, Verb.SWITCHOVER, Verb.FAILBACK, Verb.DEMOTE))
"""Carried out by the agent itself, as what its socket asks; all others are programs."""
OF_HOLDER = frozenset((*Verb,)) - {Verb.PROMOTE, Verb.DOCTOR}
"""Asked of the holder of the epoch, where no node is named."""


class Arguments(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The words of the command line."""

    dry_run: bool = False
    as_json: bool = False
    timeout_s: Annotated[float, Meta(gt=0, le=MOST_LIMIT_S)] = 900.0
    """For how long whoever asks waits for the end."""
    reason: Words | None = None
    accept_data_loss: bool = False
    to: NodeName | None = None
    despite: Words | None = None
    standby: NodeName | None = None
    full: bool = False


_ANY = {"dry_run", "as_json", "timeout_s"}
_CHANGE = _ANY | {"reason", "accept_data_loss"}
TAKES: Mapping[Verb, frozenset[str]] = {
    Verb.PROMOTE: frozenset(_CHANGE | {"despite"}),
    Verb.SWITCHOVER: frozenset(_CHANGE | {"to", "despite"}),
    Verb.FAILBACK: frozenset(_CHANGE | {"despite"}),
    Verb.DEMOTE: frozenset(_CHANGE),
    Verb.REPLICATE: frozenset(_ANY | {"standby", "full"}),
    Verb.STANDBY_ADD: frozenset(_ANY | {"standby"}),
    Verb.STANDBY_REMOVE: frozenset(_ANY | {"standby"}),
    Verb.DOCTOR: frozenset(_ANY),
}


class Request(Record, frozen=True):
    """What somebody asks of a node."""

    default_key = "requests"
    named_by = "id"
    shown = ("by",)

    id: Name
    verb: Verb
    node: NodeName
    by: Text
    """user@host."""
    beat: Number
    """Raised by whoever asks, for as long as it waits: a request lives no longer than that."""
    arguments: Arguments = Arguments()
    taken: Name | None = None
    """The process that carries it out; None: nobody has taken it."""

    def check(self) -> None:
        if not is_id(self.id):
            raise ValueError(f"{self.id[:40]!r} is no request's id")
        given = {
            name
            for name in Arguments.__struct_fields__
            if getattr(self.arguments, name) != getattr(Arguments(), name)
        }
        if more := sorted(given - TAKES[self.verb]):
            raise ValueError(f"{self.verb} takes no {', '.join(more)}")
        needs_standby = self.verb in (Verb.STANDBY_ADD, Verb.STANDBY_REMOVE)
        if needs_standby and self.arguments.standby is None:
            raise ValueError(f"{self.verb} names no node")


def _lines(value: Any) -> str | None:
    return clean_lines(value, MOST_TEXT) if isinstance(value, str) else None


class Outcome(Record, frozen=True):
    """How far it is, and what came of it; no node decides anything by it."""

    default_key = "outcomes"
    named_by = "id"
    lenient: ClassVar[Lenient] = {
        "progress": shown_texts,
        "ended": is_true,
        "text": _lines,
        "error": _lines,
        "reason": shown_text,
        "document": lambda value: value if isinstance(value, str) else None,
    }

    id: Name
    node: Name
    run: Name
    """The process that carries it out."""
    beat: Number = 0
    """Raised by that process while it is at work."""
    first: Number = 0
    """So many lines of progress were before those that are kept."""
    progress: tuple[str, ...] = ()
    ended: bool = False
    exit_code: Annotated[int, Meta(ge=0, le=4)] = 0
    text: str | None = None
    error: str | None = None
    reason: str | None = None
    document: str | None = None
    """JSON."""


class Bell(Record, frozen=True):
    """Changes with each new request."""

    default_key = BELL

    id: Name


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def parse_request(raw: bytes, key: str) -> Request:
    """Returns the request in the value of `key`; ForeignValue, also for one that is too large."""
    if len(raw) > MOST_REQUEST_BYTES:
        raise ForeignValue(f"{key} in Consul has {len(raw)} bytes: no request of Standfast's has")
    return Request.parse(raw, key)
