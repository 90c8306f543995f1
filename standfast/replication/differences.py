"""Where two manifests differ, found while both go by: neither is ever held in memory.

Invariant: lines that are equal on both sides are never reported, lines that differ always are, or
lie below a directory that is reported as being on one side only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.replication.fingerprint import shown, unescape

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Change:
    """One property; None where it isn't there."""

    key: str
    ours: str | None
    theirs: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """`changes` is empty for an entry that is on one side only, which `ours` and `theirs` say."""

    path: str
    ours: bool
    theirs: bool
    changes: tuple[Change, ...] = ()

    def sentence(self, here: str, there: str) -> str:
        """Returns the difference as a sentence with the names of the two nodes."""
        path = shown(self.path)
        if not self.changes:
            return f"{path}: only on {here if self.ours else there}"
        return f"{path}: " + "; ".join(_said(change, here, there) for change in self.changes)


def differences(ours: Iterable[str], theirs: Iterable[str]) -> Iterator[Difference]:
    """Merges two manifests and yields where they differ; Refused (protocol) for a line that is
    none."""
    return _Merge(iter(ours), iter(theirs)).run()


class _Merge:
    def __init__(self, ours: Iterator[str], theirs: Iterator[str]) -> None:
        self._ours = ours
        self._theirs = theirs
        self._reported: str | None = None
        """A directory that is not one on the other side: what is below goes without saying."""

    def run(self) -> Iterator[Difference]:
        mine, yours = next(self._ours, None), next(self._theirs, None)
        while mine is not None or yours is not None:
            if mine == yours:
                mine, yours = next(self._ours, None), next(self._theirs, None)
                continue
            order = _order(mine, yours)
            difference = self._look(mine if order <= 0 else None, yours if order >= 0 else None)
            if difference is not None:
                yield difference
            if order <= 0:
                mine = next(self._ours, None)
            if order >= 0:
                yours = next(self._theirs, None)

    def _look(self, mine: str | None, yours: str | None) -> Difference | None:
        path, first = _parse(mine if mine is not None else yours or "")
        if mine is not None and yours is not None:
            theirs = _parse(yours)[1]
            if first["type"] != theirs["type"]:
                self._reported = path
            keys = [*first, *(key for key in theirs if key not in first)]
            changes = [Change(key, first.get(key), theirs.get(key)) for key in keys]
            differing = tuple(change for change in changes if change.ours != change.theirs)
            return Difference(path, ours=True, theirs=True, changes=differing)
        if self._reported is not None and path.startswith(self._reported + "/"):
            return None
        self._reported = path
        return Difference(path, ours=mine is not None, theirs=yours is not None)


def _order(mine: str | None, yours: str | None) -> int:
    """Below 0 when only `mine` is at its place, above when only `yours`, 0 for the same path."""
    if mine is None or yours is None:
        return 1 if mine is None else -1
    first, second = _parts(mine), _parts(yours)
    return (first > second) - (first < second)


def _parts(line: str) -> list[bytes]:
    path = line.partition(" ")[0]
    return [] if path == "." else unescape(path).split(b"/")


def _parse(line: str) -> tuple[str, Mapping[str, str]]:
    path, *words = line.split(" ")
    pairs = [word.partition("=") for word in words]
    properties = {key: value for key, equals, value in pairs if equals}
    if not path or len(properties) != len(words) or "type" not in properties:
        raise Refused(
            Reason.PROTOCOL,
            f"a line of the listing is none: {line[:80]!r}. Are both ends of the same version?",
        )
    return path, properties


def _said(change: Change, here: str, there: str) -> str:
    if change.key == "sha256" and change.ours and change.theirs:
        return (
            f"the content differs (sha256 {change.ours[:16]}... on {here}, "
            f"{change.theirs[:16]}... on {there})"
        )
    key = shown(change.key).replace("xattr:", "extended attribute ")
    return f"{key} is {_value(change.ours)} on {here}, {_value(change.theirs)} on {there}"


def _value(value: str | None) -> str:
    if value is None:
        return "missing"
    if len(value) > _SHOWN_CHARACTERS:
        return f"{value[:_SHOWN_CHARACTERS]}..."
    return value or "empty"
