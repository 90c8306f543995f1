"""The lines of authorized_keys by which a replication key can do more than its node needs. Pure.

sshd takes the first line with the key that is for the address from which somebody comes, and goes
on to the next line, and the next file, where its `from=` isn't. So who stole a key is let in by
any line that has it, also below the one by which its node comes: every one counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network

from standfast.config.model import Config
from standfast.errors import Refused
from standfast.replication.authorized import Bound, Granted, granted_by, lines_in, named_by, parted
from standfast.replication.keys import KINDS, PublicKey
from standfast.system.lines import fields_of

UNKNOWN_SENDER = "NODE"
"""Stands in a line to be written for a name that only a person knows."""


@dataclass(frozen=True, slots=True)
class LooseLine:
    """A line by which a key can do more than it has to."""

    number: int
    source: str
    what: str
    """What it does or lacks, after `line N of FILE`."""
    fix: str
    instead: str = ""
    """The whole line to put there, with UNKNOWN_SENDER where nothing tells whose key it is; empty
    where only a person knows, or none has to be there."""


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    source: str
    words: tuple[str, ...]
    key: PublicKey | None
    granted: Granted | None

    def __str__(self) -> str:
        return f"line {self.number} of {self.source}"


def loose_lines(files: Mapping[str, bytes], config: Config) -> list[LooseLine]:
    """Returns those of all the files that sshd reads for the user, by their names, in its order."""
    lines = [line for source, text in files.items() for line in _read(source, text)]
    first: dict[str, _Line] = {}
    for line in lines:
        if line.key is not None and line.granted is not None:
            first.setdefault(line.key.blob, line)
    found = []
    for line in lines:
        above = next((first[word] for word in line.words if word in first), None)
        if above is line:
            found.append(_judged(line, config))
        elif above is not None:
            may = "lets receive" if line.granted else "lets do something else than receive"
            what = f"{may} whoever has the key of {above}, and comes from where that is not for"
            found.append(LooseLine(line.number, line.source, what, "remove it"))
        elif line.key is not None and (node := named_by(config, line.key)) is not None:
            what = f"lets the key of {node} do something else than receive"
            fix = f"remove it, then on {node}: standfast standby add {config.node} --install-key"
            found.append(LooseLine(line.number, line.source, what, fix))
    return [loose for loose in found if loose is not None]


def _read(source: str, text: bytes) -> list[_Line]:
    lines = []
    for number, raw in enumerate(lines_in(text), 1):
        line = raw.decode("utf-8", "replace").strip()
        if line.startswith("#"):
            continue
        parts = parted(line, KINDS)
        key = None if parts is None else _key_in(parts[1])
        granted = None if parts is None else granted_by(parts[0])
        lines.append(_Line(number, source, tuple(fields_of(line)), key, granted))
    return lines


def _key_in(text: str) -> PublicKey | None:
    """Returns the key at the end of a line, without a comment of several words; None: it is none,
    for sshd as well."""
    for words in (text, " ".join(fields_of(text)[:2])):
        with contextlib.suppress(Refused):
            return PublicKey.parse(words)
    return None


def _judged(line: _Line, config: Config) -> LooseLine | None:
    """Judges the line by which a key receives; None where nothing is wrong with it."""
    granted, key = line.granted, line.key
    assert granted is not None and key is not None
    named = named_by(config, key)
    node = granted.node or named or UNKNOWN_SENDER
    bound = Bound.to(config, node) if node in config.standbys else Bound(node, None)
    lacks, wide = granted.lacks(bound), _wide(granted)
    words = [f"lacks {lacks}"] if lacks else []
    words += [f"lets its key in from {', '.join(wide)}"] if wide else []
    if named not in (None, node):
        what = f"takes the key for that of {node}, and its comment names {named}"
        fix = f"remove it, then on the node whose key it is: standfast standby add {config.node}"
        return LooseLine(line.number, line.source, ", ".join([what, *words]), fix)
    if not words:
        return None
    what, instead = ", and ".join(words), ""
    if wide and bound.address is None:
        fix = "put the addresses there from which that node comes, one by one"
        return LooseLine(line.number, line.source, what, fix)
    if wide:
        others = [one for one in granted.narrowing if not one.lower().startswith("from=")]
        granted = replace(granted, narrowing=tuple(others))
        fix = "put this one there instead, or the addresses from which the node comes, one by one"
    else:
        fix = (
            f"put this one there instead, which `standfast standby add {config.node} "
            f"--install-key` does on the node whose key it is"
        )
    instead = granted.completed(granted.volume, bound, key)
    return LooseLine(line.number, line.source, what, f"{fix}: {instead}", instead)


def _wide(granted: Granted) -> list[str]:
    """Returns the patterns of `from=` that are for more than one address."""
    options = [one for one in granted.narrowing if one.lower().startswith("from=")]
    patterns = [part for one in options for part in one.partition("=")[2].strip('"').split(",")]
    return [pattern for pattern in patterns if _is_wide(pattern.strip())]


def _is_wide(pattern: str) -> bool:
    if pattern.startswith("!"):
        return False
    if "/" not in pattern:
        return "*" in pattern or "?" in pattern
    with contextlib.suppress(ValueError):
        return ip_network(pattern, strict=False).num_addresses > 1
    return True
