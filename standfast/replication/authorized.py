"""A replication key's line in a standby's authorized_keys.

Invariant: a line that this module writes lets its key run `standfast receive` and nothing else, as
the one storage node that it names and, where [nodes] has an address and no host name, from there
alone; and every other line stays as it is, byte for byte. A key has one line: of several, sshd
takes the first that is for the address from which somebody comes, so another one lets in whoever
comes from elsewhere. It names the volume, or, once several volumes are sent with the same key, none
(then the sender names it, and the configuration of that volume there decides).

A line of an older version lacks the node, or the address: it still lets its key receive, as
whichever node the sender says. `loose_lines.py` names it with the line to put instead, and every
other one that a key has.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from standfast.config.model import Config
from standfast.errors import Refused, did_you_mean
from standfast.reasons import Reason
from standfast.replication.authorized_file import Owner, directory_of, put_in, read_in
from standfast.replication.keys import KINDS, PublicKey, comment_of
from standfast.system.lines import fields_of

_RECEIVE = re.compile(
    r"(?P<program>(/[A-Za-z0-9._/+-]*/)?standfast receive)"
    r"( (?P<volume>[a-z0-9][a-z0-9-]*))?( --from (?P<node>[A-Za-z0-9][A-Za-z0-9._-]*))?\Z"
)
# Options that only take away: they may stand beside ours.
_NARROWING = re.compile(r'(restrict|no-[a-z0-9-]+|from="[^"\\]*"|expiry-time="[^"\\]*")\Z', re.I)
_OPTION = re.compile(r'[A-Za-z0-9-]+(="(?:[^"\\]|\\.)*")?')


@dataclass(frozen=True, slots=True)
class Bound:
    """The storage node whose key it is, and the address from which alone it is let in.

    `address` is None for a host name in [nodes]: sshd compares names only with UseDNS, which is
    off, and what a name resolves to today may keep the node out tomorrow.
    """

    node: str
    address: str | None

    @classmethod
    def to(cls, config: Config, node: str) -> Bound:
        """Returns what binds a key to this node of the configuration."""
        address = config.nodes[node].address
        with contextlib.suppress(ValueError):
            return cls(node, str(ip_address(address)))
        return cls(node, None)

    @classmethod
    def of_key(cls, config: Config, key: PublicKey, node: str | None) -> Bound:
        """Returns what binds the key to `node`, or else to the node that its comment names.

        Refused (unknown-node) for what is no other storage node, or not told.
        """
        others = ", ".join(config.standbys) or "there is none"
        if node is None:
            node = named_by(config, key)
        if node is None:
            raise Refused(
                Reason.UNKNOWN_NODE,
                f"whose key is it? Its comment ({key.comment or 'none'}) doesn't say. Say it: "
                f"--from NODE, one of: {others}",
            )
        if node not in config.standbys:
            raise Refused(
                Reason.UNKNOWN_NODE,
                f"{node} is not another storage node of {config.source}: {others}"
                f"{did_you_mean(node, config.standbys)}. Say whose key it is: --from NODE",
            )
        return cls.to(config, node)


def named_by(config: Config, key: PublicKey) -> str | None:
    """Returns the storage node that the key's comment names, as `standby add` makes it."""
    named = (node for node in config.standbys if comment_of(config.cluster, node) == key.comment)
    return next(named, None)


class Change(StrEnum):
    """What `authorize` did to the file."""

    ADDED = "added"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


def authorized_line(volume: str | None, bound: Bound, key: PublicKey) -> str:
    """Returns the line of authorized_keys; without a volume, of every volume of the node."""
    return _line("standfast receive", volume, bound.node, _from(bound), key)


def _from(bound: Bound) -> list[str]:
    return [] if bound.address is None else [f'from="{bound.address}"']


def _line(
    program: str, volume: str | None, node: str, others: Sequence[str], key: PublicKey
) -> str:
    named = "" if volume is None else f" {volume}"
    options = ["restrict", *others, f'command="{program}{named} --from {node}"']
    return f"{','.join(options)} {key}"


def nixos_form(lines: Sequence[str]) -> str:
    """Returns the same for NixOS: whole lines, as what a module puts before every key alike can't
    bind each to its node."""
    listed = " ".join(f"''{line}''" for line in lines)
    return f"nfsServicesStandby.replicationKeys = [ {listed} ];"


def authorize(
    path: Path,
    user: str,
    volume: str,
    bound: Bound,
    key: PublicKey,
    *,
    dry_run: bool = False,
    elsewhere: bool = False,
) -> Change:
    """Lets `key` receive `volume`, by one line of the file at `path`; on disk when this returns.

    Refused when the file is a symlink, when somebody else could write there (sshd would ignore
    it), or when the key may do something else there already, or is another node's.

    `elsewhere`: the node was seen to come from another address than `bound` has. A line that lets
    it in gets no `from=` then, as that would keep it out.
    """
    owner = Owner.of(user)
    if dry_run and not path.parent.exists():
        return Change.ADDED
    with directory_of(path, owner) as directory:
        before = read_in(directory, path, owner)
        after, change = with_line(before, volume, bound, key, str(path), elsewhere=elsewhere)
        if change is not Change.UNCHANGED and not dry_run:
            put_in(directory, path.name, after, owner)
    return change


def with_line(
    text: bytes, volume: str, bound: Bound, key: PublicKey, source: str, *, elsewhere: bool = False
) -> tuple[bytes, Change]:
    """Returns the file's content with the key's one line; pure.

    A line of an older version gets what it lacks; other options that only narrow it stay, also
    another `from=`: a jump host's, say. `elsewhere` as for `authorize`.
    """
    lines = lines_in(text)
    ours = [number for number, line in enumerate(lines) if _is_of(line, key)]
    if not ours:
        gap = b"" if not text or text.endswith(b"\n") else b"\n"
        return text + gap + authorized_line(volume, bound, key).encode() + b"\n", Change.ADDED
    number = ours[0]
    line = lines[number].decode("utf-8", "replace").rstrip("\r\n")
    parts = parted(line, (key.kind,))
    granted = None if parts is None else granted_by(parts[0])
    if granted is None:
        raise Refused(
            Reason.BAD_KEY,
            f"line {number + 1} of {source} lets this key do something else than receive: remove "
            f"it, then run this again",
        )
    if len(ours) > 1:
        numbers = ", ".join(str(line + 1) for line in ours)
        raise Refused(
            Reason.BAD_KEY,
            f"lines {numbers} of {source} have this key, and sshd takes whichever is for the "
            f"sender's address: leave one that binds it to {bound.node}, then run this again",
        )
    if granted.node not in (None, bound.node):
        raise Refused(
            Reason.BAD_KEY,
            f"line {number + 1} of {source} has this key as that of {granted.node}: each node has "
            f"one of its own. If {granted.node} is now called {bound.node}, remove that line and "
            f"run this again; else move the key away on {bound.node}, and `standfast standby add` "
            f"there makes another",
        )
    if elsewhere:
        bound = replace(bound, address=None)
    wanted = granted.volume if granted.volume in (None, volume) else None
    if wanted == granted.volume and not granted.lacks(bound):
        return text, Change.UNCHANGED
    lines[number] = granted.completed(wanted, bound, key).encode() + b"\n"
    return b"".join(lines), Change.UPDATED


def without_lines(text: bytes, volume: str | None) -> tuple[bytes, int]:
    """Returns the file's content without the lines that let a key receive `volume`, and how many
    those were; None: any volume. Every other line stays as it is, byte for byte; pure."""
    lines = lines_in(text)
    kept = [line for line in lines if not _is_granted(line, volume)]
    return b"".join(kept), len(lines) - len(kept)


def _is_granted(line: bytes, volume: str | None) -> bool:
    parts = parted(line.decode("utf-8", "replace").rstrip("\r\n"), KINDS)
    granted = None if parts is None else granted_by(parts[0])
    return granted is not None and (volume is None or granted.volume == volume)


def revoke(path: Path, user: str, volume: str | None, *, dry_run: bool = False) -> int:
    """Takes those lines out of the user's file, and returns how many there were. Refused for a file
    that sshd would not trust, or that another tool keeps; OSError."""
    owner = Owner.of(user)
    if not os.path.lexists(path.parent):
        return 0
    with directory_of(path, owner) as directory:
        after, count = without_lines(read_in(directory, path, owner), volume)
        if count and not dry_run:
            put_in(directory, path.name, after, owner)
    return count


def lines_in(text: bytes) -> list[bytes]:
    """Returns the lines of a file, with their ends, and what is after the last one."""
    return re.split(rb"(?<=\n)", text)


def _is_of(line: bytes, key: PublicKey) -> bool:
    words = fields_of(line.decode("utf-8", "replace").strip())
    return not line.lstrip().startswith(b"#") and key.blob in words


def parted(line: str, kinds: Sequence[str]) -> tuple[list[str], str] | None:
    """Returns the options of a line, and its key of one of these kinds; None for what can't be
    told apart."""
    starts = tuple(f"{kind} " for kind in kinds)
    rest, options = line.strip(), []
    while not rest.startswith(starts):
        match = _OPTION.match(rest)
        if match is None:
            return None
        options.append(match.group())
        rest = rest[match.end() :]
        if rest.startswith(","):
            rest = rest[1:]
        elif not rest.startswith((" ", "\t")):
            return None
        rest = rest.lstrip()
    return options, rest


@dataclass(frozen=True, slots=True)
class Granted:
    """What the options of a line allow: `standfast receive` and nothing else."""

    program: str
    volume: str | None
    node: str | None
    narrowing: tuple[str, ...]
    """The other options, as they came."""

    def lacks(self, bound: Bound) -> str:
        """Returns what a line of today has beyond this one; empty when nothing."""
        lacking = [] if self._has("restrict") else ["restrict"]
        lacking += [] if self.node is not None else [f"--from {bound.node}"]
        lacking += [] if bound.address is None or self._has("from=") else _from(bound)
        return ", ".join(lacking)

    def completed(self, volume: str | None, bound: Bound, key: PublicKey) -> str:
        others = [one for one in self.narrowing if one.lower() != "restrict"]
        address = [] if self._has("from=") else _from(bound)
        return _line(self.program, volume, self.node or bound.node, [*address, *others], key)

    def _has(self, beginning: str) -> bool:
        return any(option.lower().startswith(beginning) for option in self.narrowing)


def granted_by(options: Sequence[str]) -> Granted | None:
    """Returns what the options allow; None when that is not `standfast receive` alone."""
    commands = [option for option in options if option.lower().startswith("command=")]
    others = [option for option in options if option not in commands]
    if len(commands) != 1 or not all(map(_NARROWING.match, others)):
        return None
    match = _RECEIVE.match(commands[0].partition("=")[2].strip('"'))
    if match is None:
        return None
    return Granted(match["program"], match["volume"], match["node"], tuple(others))
