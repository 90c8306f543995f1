"""How a value of ours in Consul is read and written: every record's common part.

Invariants: what is compared is printable and short, or the record is foreign; what is only shown is
made so here, for every page, line, metric and hook that shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from msgspec import Meta, Struct, ValidationError, convert, to_builtins

from standfast.errors import ForeignValue
from standfast.text import MOST_NAME, MOST_SENTENCE, check_printable, clean, clean_lines

VERSION = 1
MOST_SHOWN = 20
MOST_SECONDS = 253_402_300_800  # the year 10000 can't be printed

Number = Annotated[int, Meta(ge=0, lt=2**53)]
Seconds = Annotated[float, Meta(ge=0, lt=MOST_SECONDS)]
Name = Annotated[str, Meta(min_length=1, max_length=MOST_NAME)]
"""Compared with others: what isn't printable is foreign."""
Text = Annotated[str, Meta(min_length=1)]
"""Shown: see `Record.shown`."""


def shown_seconds(value: Any) -> float | None:
    """Returns a time that is only shown: None for one that is none, which makes no record
    foreign."""
    try:
        return convert(value, Seconds | None)
    except ValidationError:
        return None


def shown_text(value: Any, shown: Callable[[str, int], str] = clean) -> str | None:
    return shown(value, MOST_SENTENCE) if isinstance(value, str) else None


shown_lines = partial(shown_text, shown=clean_lines)


def shown_texts(value: Any) -> tuple[str, ...]:
    """Of anything that was written there, what can be shown."""
    texts = map(shown_lines, value if isinstance(value, list) else ())
    return tuple(text for text in texts if text is not None)[:MOST_SHOWN]


def is_true(value: Any) -> bool:
    return value is True


def is_not_false(value: Any) -> bool:
    return value is not False


Lenient = Mapping[str, Callable[[Any], Any]]


class Record(Struct, frozen=True, omit_defaults=True):
    """A value in Consul. Its fields say what is accepted: one without a default has to be there,
    one with a default is not written while it has it, and an unknown one is room for later."""

    default_key: ClassVar[str]
    named_by: ClassVar[str] = ""
    """The field that the key ends with: a record of something else is foreign there."""
    lenient: ClassVar[Lenient] = {}
    """Fields that make no record foreign, each with what a value of it counts as."""
    shown: ClassVar[Collection[str]] = ()
    """Fields for people: made printable and cut. All others are printable, or the record is
    foreign."""

    def fields(self) -> dict[str, Any]:
        """Returns what is written, without the version."""
        fields: dict[str, Any] = to_builtins(self)
        return fields

    def check(self) -> None:
        """Raises ValueError where the fields contradict each other."""

    def dump(self) -> bytes:
        # By json: to msgspec a text with an undecodable byte is none.
        return json.dumps({"v": VERSION, **self.fields()}, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, raw: bytes, key: str | None = None) -> Self:
        """Returns the record in `raw`, the value of `key`; ForeignValue for anything else."""
        try:
            doc = json.loads(raw)
            if not isinstance(doc, dict) or type(doc.get("v")) is not int or doc["v"] != VERSION:
                raise ValueError(f'it is not a JSON object with "v": {VERSION}')
            doc |= {name: read(doc[name]) for name, read in cls.lenient.items() if name in doc}
            texts = [name for name in cls.shown if isinstance(doc.get(name), str)]
            doc |= {name: clean(doc[name], MOST_SENTENCE) for name in texts}
            record = convert(doc, cls)
            for name in record.__struct_fields__:
                if name not in cls.lenient:
                    check_printable(getattr(record, name), name)
            record.check()
            if key and cls.named_by:
                told = str(getattr(record, cls.named_by))
                if key.rpartition(f"{cls.default_key}/")[2] != told:
                    raise ValueError(f"its {cls.named_by} is {told}")
        except (ValueError, RecursionError) as error:
            where = clean(key or cls.default_key, MOST_NAME)
            raise ForeignValue(
                f"{where} in Consul holds a value that Standfast did not write "
                f"({error!r}): {raw[:80].decode('utf-8', 'replace')!r}. Nothing was changed. "
                f"Look at it with `consul kv get`, and restore or delete it."
            ) from error
        return record
