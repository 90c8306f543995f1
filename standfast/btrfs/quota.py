"""The limit that btrfs' quota sets to a subvolume, which each snapshot of it inherits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from standfast.btrfs import info
from standfast.btrfs.place import file_system

_MAX_REFERENCED, _MAX_EXCLUSIVE = 1 << 0, 1 << 1
_NO_LIMIT = 2**64 - 1
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
    group = Path(f"/sys/fs/btrfs/{uuid}/qgroups/0_{number}")
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
