"""What doctor says of who gets at the volume beside its clients' programs: whoever may mount it,
and users of this machine who come upon a set-uid program in it.

Root of a client may put such a program there, and it is alive wherever the tree, or a snapshot of
it, can be entered and isn't mounted with nosuid and nodev. The tree itself lies on a mount of the
operator's, and its root's mode is data that is replicated: neither is changed. `set_uid` is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.config.advice import wide_exports
from standfast.config.client import INERT
from standfast.config.model import Config
from standfast.doctor.finding import Finding
from standfast.system.files import read_foreign_text
from standfast.system.mountinfo import Mount, around, mounted_at, parse_mountinfo, root_of

MOUNTS = Path("/proc/self/mountinfo")
_ENTER = 0o011
"""Of a directory's mode: others than its owner may enter it; an ACL shows as the group's."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with trees of the volume in it."""

    path: Path
    mount: str
    """Where the mount is through which it is seen."""
    alive: bool
    """Others than root can enter it, and what is set-uid there works."""
    is_ours: bool
    """Nothing else is in it."""


def set_uid(places: Sequence[Place], bind: str | None) -> Finding:
    """Judges where users of this machine come upon set-uid programs of the volume; `bind`: where
    the live tree is mounted so that they work, and isn't to be. Pure."""
    words, fixes = [], []
    for place in places:
        if place.alive and place.is_ours:
            words.append(f"everybody can enter {place.path}")
            fixes.append(f"chmod 0700 {place.path}")
    if bind is not None:
        words.append(f"{bind} is mounted without {' and '.join(INERT)}")
        fixes.append(f"mount -o remount,bind,{','.join(INERT)} {bind}")
    if words:
        return Finding("set-uid", False, "; ".join(words), "; ".join(fixes))
    left = [place for place in places if place.alive]
    if not left:
        return Finding("set-uid", True, "no set-uid program of the volume works on this machine")
    # For good reasons, maybe: what else is on that mount is the operator's.
    them = "; ".join(
        f"in {place.path}, unless {place.mount} is mounted with {','.join(INERT)}" for place in left
    )
    return Finding("set-uid", True, f"set-uid programs of the volume work for all users {them}")


def exports(config: Config) -> list[Finding]:
    """Judges the list of clients; never bad, as only the operator knows his machines. Pure."""
    told = [f"{problem.rule}: {problem.way_out}" for problem in wide_exports(config)]
    return [
        Finding("export", True, "; ".join(told) or "root of no whole network is root in the volume")
    ]


def look(config: Config) -> list[Finding]:
    """Looks at this node; OSError."""
    mounts = parse_mountinfo(read_foreign_text(MOUNTS))
    return [set_uid(list(_places(config, mounts)), _bind(config, mounts)), *exports(config)]


def _places(config: Config, mounts: Sequence[Mount]) -> Iterator[Place]:
    paths = config.paths
    for path in dict.fromkeys((paths.standby, paths.snapshots, paths.live.parent)):
        if not path.is_dir():
            continue
        real = path.resolve()
        mount = around(mounts, real)
        alive = _can_be_entered(real) and not (mount is not None and _is_inert(mount))
        is_ours = path == paths.standby or _has_snapshots_alone(path, config)
        yield Place(path, "/" if mount is None else mount.point, alive, is_ours)


def _has_snapshots_alone(path: Path, config: Config) -> bool:
    """A directory above the live tree has to be open: NFS 4 clients come through it, and their root
    as nobody."""
    names = [entry.name for entry in path.iterdir()]
    return all(name.startswith(f"{config.base}@") for name in names)


def _can_be_entered(path: Path) -> bool:
    return all(place.stat().st_mode & _ENTER for place in (path, *path.parents))


def _bind(config: Config, mounts: Sequence[Mount]) -> str | None:
    seen = mounted_at(mounts, config.paths.bind)
    if seen is None or not config.client.nosuid or _is_inert(seen):
        return None
    live = (seen.device, seen.root) == root_of(mounts, config.paths.live)
    return seen.point if live else None


def _is_inert(mount: Mount) -> bool:
    return set(INERT) <= set(mount.flags.split(","))
