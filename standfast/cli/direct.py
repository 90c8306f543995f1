"""Commands that somebody waits for each time, begun without the parser.

Invariant: what is not exactly such a command with a volume, or without one, is the parser's, which
says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

ENTRIES = {"receive": "standfast.cli.receive:receive"}
"""By command, its entry in the table: the parser's share of a start is 10 ms, in every cycle."""
_VOLUME = re.compile(r"[a-z0-9][a-z0-9-]*")


def recognise(words: Sequence[str]) -> tuple[str, SimpleNamespace] | None:
    """Returns the entry and its arguments; None when the parser has to read the words."""
    if not 1 <= len(words) <= 2 or words[0] not in ENTRIES:
        return None
    volume = words[1] if len(words) == 2 else None
    if volume is not None and not _VOLUME.fullmatch(volume):
        return None
    return ENTRIES[words[0]], SimpleNamespace(volume=volume)
