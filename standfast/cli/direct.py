"""Commands that somebody waits for each time, begun without the parser.

Invariant: what is not exactly such a command as a key's line has it is the parser's, which says
what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace

ENTRIES = {"receive": "standfast.cli.receive:receive"}
"""By command, its entry in the table: the parser's share of a start is 10 ms, in every cycle."""
_RECEIVE = re.compile(
    r"(?P<command>receive)(\0(?P<volume>[a-z0-9][a-z0-9-]*))?"
    r"(\0--from\0(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*))?"
)


def recognise(words: Sequence[str]) -> tuple[str, SimpleNamespace] | None:
    """Returns the entry and its arguments; None when the parser has to read the words."""
    match = _RECEIVE.fullmatch("\0".join(words))
    if match is None:
        return None
    return ENTRIES[match["command"]], SimpleNamespace(
        **{"volume": match["volume"], "from": match["node"]}
    )
