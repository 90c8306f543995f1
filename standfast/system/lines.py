"""Lines and fields of what the kernel or a program prints: names in it may be any bytes.

Invariant: only what the writer parts by counts. A line ends at a line feed and nowhere else, and
fields are parted by blanks and tabs: `str.splitlines` and a bare `str.split` part at a dozen more
characters (\\r, \\f, \\x1c, \\x85, U+2028, ...), which kernel and tools leave as they are in names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def lines_of(text: str) -> Sequence[str]:
    """Returns the lines without their ends; the last one need not have an end."""
    return text.removesuffix("\n").split("\n") if text else ()


def fields_of(line: str) -> Sequence[str]:
    """Returns the fields of a line, parted by any number of blanks and tabs."""
    return [field for field in re.split("[ \t]+", line) if field]


def number(field: str) -> int | None:
    """Returns a whole number in ASCII digits, 20 at most; None for anything else, of which `int`
    takes some and refuses some (5,000 digits)."""
    return int(field) if len(field) <= 20 and field.isascii() and field.isdigit() else None


def unescaped(field: str) -> str:
    """Returns a field as it is meant: the kernel and exportfs write blanks, backslashes and the
    like as octal bytes there."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), os.fsencode(field)))


def clean(text: str, most: int | None = None) -> str:
    """Returns the text with everything unprintable replaced, at most so many characters of it."""
    if most is not None and len(text) > most:
        text = text[: most - 3] + "..."
    return "".join(char if char.isprintable() else "?" for char in text)
