"""Where a volume lies: its file system, the mount that shows it, and copies of it elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import uuid
from pathlib import Path

from standfast.errors import CommandFailed, TimedOut
from standfast.system.clock import Deadline
from standfast.system.files import read_foreign_text
from standfast.system.lines import lines_of
from standfast.system.mountinfo import around, mounted_at, parse_mountinfo
from standfast.system.run import run

MOUNTS = Path("/proc/self/mountinfo")
_FS_INFO_SIZE = 1024
# struct btrfs_ioctl_fs_info_args: max_id, num_devices, fsid, ...
_FS_INFO_HEAD = struct.Struct("=QQ16s")
_FS_INFO = (2 << 30) | (_FS_INFO_SIZE << 16) | (0x94 << 8) | 31  # _IOR(0x94, 31, args)
_SUBVOLUME_ROOT_INODE = 256
_BLKID_TIMEOUT_S = 10.0


def file_system(path: Path) -> str | None:
    """Returns the UUID of the btrfs that has the path (or will have it); None when that is no
    btrfs."""
    descriptor = os.open(nearest(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        answer = bytearray(_FS_INFO_SIZE)
        fcntl.ioctl(descriptor, _FS_INFO, answer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise
    finally:
        os.close(descriptor)
    return str(uuid.UUID(bytes=_FS_INFO_HEAD.unpack_from(answer)[2]))


def nearest(path: Path) -> Path:
    """Returns the path itself, or of those above it the first that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def is_mount_point(path: Path, mountinfo: Path = MOUNTS) -> bool:
    """Tells whether something is mounted at the path itself; a mere subvolume is none."""
    mounts = parse_mountinfo(read_foreign_text(mountinfo))
    return mounted_at(mounts, path.parent.resolve() / path.name) is not None


def mount_point_of(path: Path, mountinfo: str) -> Path:
    """Returns where the mount is through which the path (or what is above it) is seen."""
    mount = around(parse_mountinfo(mountinfo), nearest(path).resolve())
    return Path("/" if mount is None else mount.point)


def shows_a_subvolume(mount_point: Path) -> bool:
    """Tells a mounted subvolume from a bind mount of a mere directory."""
    return mount_point.stat().st_ino == _SUBVOLUME_ROOT_INODE


def copies_of(file_system_uuid: str) -> tuple[str, ...]:
    """Returns devices that all claim to be the same device of this file system; () when there is
    one.

    A file system of several devices has one UUID, too, but each device has its own beside it.
    """
    try:
        argv = ["blkid", "-c", "/dev/null", "-t", "TYPE=btrfs", "-o", "export"]
        said = run(argv, deadline=Deadline.after(_BLKID_TIMEOUT_S), op="blkid", check=False)
    except (CommandFailed, TimedOut):
        return ()
    return parse_copies(said.stdout, file_system_uuid)


def parse_copies(blkid: str, file_system_uuid: str) -> tuple[str, ...]:
    """Returns them from what `blkid -o export` prints."""
    devices: dict[str, list[str]] = {}
    for block in blkid.split("\n\n"):
        of = dict(line.split("=", 1) for line in lines_of(block) if "=" in line)
        name = of.get("DEVNAME", "")
        if of.get("UUID") == file_system_uuid and not _is_used_by_another(name):
            devices.setdefault(of.get("UUID_SUB", ""), []).append(name)
    return tuple(sorted(name for same in devices.values() if len(same) > 1 for name in same))


def _is_used_by_another(device: str) -> bool:
    """A path or a leg of a device built on it (multipath, mirror) is no copy."""
    try:
        return any(os.scandir(f"/sys/class/block/{Path(device).name}/holders"))
    except (OSError, ValueError):
        return False
