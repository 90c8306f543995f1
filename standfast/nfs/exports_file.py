"""A file of exports(5), parted as exportfs parts it.

Invariant: a path is what exportfs's table would have, but for symbolic links in it: the disk isn't
asked. Blanks are C's six. A `#` begins a comment only where a word could begin. Quotes may begin
and end within a word. The backslash of an octal escape may be the result of another one. By
xgettok() and getexportent() of nfs-utils (2.6.2 to 2.9): support/nfs/xio.c and exports.c.

Its one difference: an entry that exportfs refuses, and with it the rest of that file, is told like
any other. Whoever mends the file has it exported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_JOINT = r"\\\n[ \t]*"
"""A backslash at a line's end: one blank, and none of those that follow."""
_BETWEEN_ENTRIES = re.compile(rf"(?:[ \t\n]|{_JOINT}|#[^\n]*)*")
_BETWEEN_WORDS = re.compile(rf"(?:[ \t]|{_JOINT})*(?:#[^\n]*)?")
_WORD = re.compile(r'(?:"[^"]*(?:"|\Z)|[^ \t\n\v\f\r"\\]|\\(?!\n))*')
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_END_OF_WORD = re.compile(rf"(?:[ \t\v\f\r]|{_JOINT})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A path and whom it is exported to."""

    line: int
    """Where its path stands, from 1."""
    path: Path
    clients: tuple[str, ...]
    """With their options; what begins with a dash is said of all that follow."""


def entries(text: str) -> Iterator[Entry]:
    """Yields what is exported by a file with this text."""
    words = _Words(text)
    while True:
        words.skip(_BETWEEN_ENTRIES)
        line, path = words.line, words.next()
        if not path:
            return  # the end, or a blank that is none between entries: exportfs reads no further
        clients = []
        words.skip(_BETWEEN_WORDS)
        if (word := words.next()).startswith("-"):
            clients.append(word)
            words.skip(_BETWEEN_WORDS)
            word = words.next()
        while True:
            clients.append(word)  # "" is everybody, where no client is named
            words.skip(_BETWEEN_WORDS)
            if not (word := words.next()):
                break
        yield Entry(line, _normal(path), tuple(filter(None, clients)))


def _normal(path: str) -> Path:
    """Without what names the same directory: doubled slashes, one at the end, `.` and `..`."""
    rooted = "/" if path.startswith("/") else ""
    return Path(rooted + os.path.normpath(path).lstrip("/"))


class _Words:
    """Where in the text reading has come to."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.line = 1

    def skip(self, what: re.Pattern[str]) -> str:
        match = what.match(self._text, self._at)
        assert match is not None, "each pattern matches nothing, too"
        self._at = match.end()
        self.line += match[0].count("\n")
        return match[0]

    def next(self) -> str:
        """Returns the next word, as it is meant; "" where there is none."""
        raw = self.skip(_WORD)
        self.skip(_END_OF_WORD)
        return _meant(re.sub(_JOINT, " ", raw).replace('"', ""))


def _meant(word: str) -> str:
    """Returns a word without its escapes; a byte 0 ends it."""
    made = bytearray()
    for byte in os.fsencode(word):
        made.append(byte)
        if escape := _ESCAPE.search(made, max(0, len(made) - 4)):
            made[-4:] = bytes([int(escape[1], 8)])
    return os.fsdecode(bytes(made).partition(b"\0")[0])
