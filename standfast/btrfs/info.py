"""What the kernel says of a subvolume and is told about one, without starting a process.

BTRFS_IOC_GET_SUBVOL_INFO (Linux 4.18) needs no privilege and answers in microseconds, where
`btrfs subvolume show` costs a process for each and a text to parse.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from standfast.btrfs.names_and_places import TreeInfo

_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the root directory of every subvolume
# It isn't there, is no directory, a link, on another file system, or was deleted just now.
_IS_NONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTTY, errno.EINVAL)
_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_READ_ONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, as it is set
_ROOT_READ_ONLY = 1  # BTRFS_ROOT_SUBVOL_RDONLY, as it is told
# struct btrfs_ioctl_get_subvol_info_args: treeid, name, parent_id, dirid, generation, flags,
# uuid, parent_uuid, received_uuid, then transaction ids, times and spare room.
_HEAD = struct.Struct("=Q256sQQQQ16s16s16s")
_SIZE = 504
_GET_SUBVOL_INFO = (2 << 30) | (_SIZE << 16) | (0x94 << 8) | 60  # _IOR(0x94, 60, args)
_CHANGED_IN = struct.Struct("=Q")  # ctransid, which follows the uuids
# struct btrfs_ioctl_received_subvol_args: uuid, stransid, rtransid, two times, flags, reserved.
_RECEIVED = struct.Struct("=16sQQ 16x 16x Q128x")
_SET_RECEIVED_SUBVOL = (3 << 30) | (_RECEIVED.size << 16) | (0x94 << 8) | 37  # _IOWR(0x94, 37)
_FLAGS = struct.Struct("=Q")
_SUBVOL_SETFLAGS = (1 << 30) | (_FLAGS.size << 16) | (0x94 << 8) | 26  # _IOW(0x94, 26, u64)


def parse(raw: bytes) -> TreeInfo:
    """Returns what the ioctl's answer says."""
    if len(raw) != _SIZE:
        raise ValueError(f"the kernel's answer has {len(raw)} bytes, not {_SIZE}")
    fields = _HEAD.unpack_from(raw)
    flags, own, parent, received = fields[5], *fields[6:9]
    return TreeInfo(
        uuid=str(uuid.UUID(bytes=own)),
        received_uuid=_uuid_or_none(received),
        read_only=bool(flags & _ROOT_READ_ONLY),
        parent_uuid=_uuid_or_none(parent),
    )


def _uuid_or_none(raw: bytes) -> str | None:
    return str(uuid.UUID(bytes=raw)) if any(raw) else None


def read(path: Path) -> TreeInfo | None:
    """Returns the subvolume whose root is `path`; None when it is something else or is gone.

    OSError when the kernel can't say (damaged file system, no permission).
    """
    raw = _read_raw(path)
    return None if raw is None else parse(raw)


def number(path: Path) -> int | None:
    """Returns the number (tree id) of the subvolume whose root is `path`; None and OSError as
    `read`."""
    raw = _read_raw(path)
    return None if raw is None else int(_HEAD.unpack_from(raw)[0])


def stand_in(path: Path, content_id: str, of: Path) -> None:
    """Makes the writable subvolume `path` one that was received as `content_id`; read-only then.

    `of` is the read-only subvolume that it is a snapshot of. Needs root; OSError as `read`.
    """
    original = _read_raw(of)
    if original is None:
        raise FileNotFoundError(f"{of} is no subvolume, or is gone")
    mark_received(path, content_id, *_CHANGED_IN.unpack_from(original, _HEAD.size))
    with _opened(path) as descriptor:
        fcntl.ioctl(descriptor, _SUBVOL_SETFLAGS, _FLAGS.pack(_READ_ONLY))


def mark_received(path: Path, content_id: str, changed_in: int = 0) -> None:
    """Gives the writable subvolume `path` a received UUID, with the sender's transaction."""
    mark = _RECEIVED.pack(uuid.UUID(content_id).bytes, changed_in, 0, 0)
    with _opened(path) as descriptor:
        fcntl.ioctl(descriptor, _SET_RECEIVED_SUBVOL, bytearray(mark))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _ROOT_FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_raw(path: Path) -> bytes | None:
    answer = bytearray(_SIZE)
    try:
        with _opened(path) as descriptor:
            if os.fstat(descriptor).st_ino != _ROOT_INODE:
                return None
            fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, answer)
    except OSError as error:
        if error.errno in _IS_NONE:
            return None
        raise
    return bytes(answer)
