"""Texts for people: what comes from elsewhere made printable, sizes, durations, ages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from standfast import ages
from standfast.names import SnapshotName
from standfast.system import lines
from standfast.system.clock import utc_now
from standfast.system.lines import lines_of

clean = lines.clean
MOST_NAME = 255
"""Characters of a name from elsewhere that are shown."""
MOST_SENTENCE = 1000


def clean_lines(text: str, most: int | None = None) -> str:
    """The same, of several lines."""
    if most is not None and len(text) > most:
        text = text[: most - 3] + "..."
    return "\n".join(clean(line.rstrip("\r")) for line in lines_of(text))


def check_printable(value: Any, where: str) -> None:
    """Raises ValueError for a text anywhere in `value` that would do something to a terminal: what
    `isprintable` says no pattern can. For texts that are compared, and so not changed."""
    match value:
        case str():
            if not value.isprintable():
                raise ValueError(f"{value[:40]!r} is not a printable text - at `$.{where}`")
        case Mapping():
            check_printable((*value, *value.values()), where)
        case tuple():
            for item in value:
                check_printable(item, where)
        case Struct():
            fields = tuple(getattr(value, name) for name in value.__struct_fields__)
            check_printable(fields, where)


def some(names: Sequence[str], most: int = 5) -> str:
    """Names the first of them."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def age_s(snapshot: str, taken_at: float | None = None) -> float | None:
    """Seconds since `taken_at` (UTC seconds), or else since the time in a snapshot's name; None
    when that lies in the future: a clock was set back, and nobody knows."""
    try:
        at = SnapshotName.parse(snapshot).stamp if taken_at is None else taken_at
    except (ValueError, OverflowError):
        return None
    return ages.age_of(at, utc_now())


def size(count: int) -> str:
    """`112 B`, `3.4 MiB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """`42 s`, `7 min`, `3.5 h`; `never` for None."""
    if seconds is None:
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
