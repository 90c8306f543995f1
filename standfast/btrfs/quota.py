"""Limits of btrfs' quota: a subvolume's own, which its snapshots inherit, and those of groups that
it is in, which its snapshots aren't."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from standfast.btrfs import info
from standfast.btrfs.place import file_system
from standfast.btrfs.tree_search import QUOTA, Search

_MAX_REFERENCED, _MAX_EXCLUSIVE = 1 << 0, 1 << 1
_NO_LIMIT = 2**64 - 1
_RELATION = 246  # BTRFS_QGROUP_RELATION_KEY
_LEVEL_SHIFT = 48  # BTRFS_QGROUP_LEVEL_SHIFT
# struct btrfs_ioctl_qgroup_limit_args: qgroupid (0: of this subvolume), flags, the two limits, two
# for reservations.
_LIMIT = struct.Struct("=QQQQ16x")
_QGROUP_LIMIT = (2 << 30) | (_LIMIT.size << 16) | (0x94 << 8) | 43  # _IOR(0x94, 43, args)


def limit_of(subvolume: Path) -> int | None:
    """Returns the least limit that is set to a subvolume itself, bytes; None: none is seen.

    From sysfs (Linux 5.9), which anybody may read.
    """
    number, uuid = info.number(subvolume), file_system(subvolume)
    if number is None or uuid is None:
        return None
    return _limit(uuid, number)


def group_limits(subvolume: Path) -> Mapping[str, int]:
    """Returns the least limit of each group that the subvolume is in, directly or by another group,
    where there is one: `1/0` -> bytes. It needs root."""
    number, uuid = info.number(subvolume), file_system(subvolume)
    if number is None or uuid is None:
        return {}
    descriptor = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        groups = _groups_of(descriptor, number)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return {}  # no quota
    finally:
        os.close(descriptor)
    limits = {_written(group, "/"): _limit(uuid, group) for group in sorted(groups)}
    return {group: limit for group, limit in limits.items() if limit is not None}


def _groups_of(descriptor: int, number: int) -> set[int]:
    groups: set[int] = set()
    waiting = [number]
    while waiting:
        for group in _parents(descriptor, waiting.pop()):
            if group not in groups:
                groups.add(group)
                waiting.append(group)
    return groups


def _parents(descriptor: int, group: int) -> Iterator[int]:
    """A relation lies there in both directions; a parent has a higher level, and so number."""
    search, after = Search(descriptor, QUOTA), group
    while (item := search.first((group, group), _RELATION, after + 1)) is not None:
        yield (after := item.offset)


def _written(group: int, between: str) -> str:
    return f"{group >> _LEVEL_SHIFT}{between}{group & ((1 << _LEVEL_SHIFT) - 1)}"


def _limit(uuid: str, number: int) -> int | None:
    group = Path(f"/sys/fs/btrfs/{uuid}/qgroups/{_written(number, '_')}")
    try:
        flags = int((group / "limit_flags").read_text())
        files = {_MAX_REFERENCED: "max_referenced", _MAX_EXCLUSIVE: "max_exclusive"}
        limits = [int((group / name).read_text()) for flag, name in files.items() if flags & flag]
    except (OSError, ValueError):  # no quota
        return None
    return min(limits, default=None)


def lift_limit(path: Path) -> None:
    """Ends every limit of the subvolume `path` itself; nothing where quota is off."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ask = _LIMIT.pack(0, _MAX_REFERENCED | _MAX_EXCLUSIVE, _NO_LIMIT, _NO_LIMIT)
    try:
        with contextlib.suppress(OSError):  # no quota, or none that counts this subvolume
            fcntl.ioctl(descriptor, _QGROUP_LIMIT, ask)
    finally:
        os.close(descriptor)
