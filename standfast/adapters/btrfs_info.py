"""What the kernel says of a subvolume, without starting a process.

BTRFS_IOC_GET_SUBVOL_INFO (Linux 4.18) needs no privilege and answers in microseconds, where
`btrfs subvolume show` costs a process for each and a text to parse.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import uuid
from pathlib import Path

from standfast.adapters.store import TreeInfo

_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the root directory of every subvolume
_READ_ONLY = 1  # BTRFS_ROOT_SUBVOL_RDONLY
# struct btrfs_ioctl_get_subvol_info_args: treeid, name, parent_id, dirid, generation, flags,
# uuid, parent_uuid, received_uuid, then transaction ids, times and spare room.
_HEAD = struct.Struct("=Q256sQQQQ16s16s16s")
_SIZE = 504
_GET_SUBVOL_INFO = (2 << 30) | (_SIZE << 16) | (0x94 << 8) | 60  # _IOR(0x94, 60, args)


def parse(raw: bytes) -> TreeInfo:
    """From the ioctl's answer."""
    if len(raw) != _SIZE:
        raise ValueError(f"the kernel's answer has {len(raw)} bytes, not {_SIZE}")
    fields = _HEAD.unpack_from(raw)
    flags, own, received = fields[5], fields[6], fields[8]
    return TreeInfo(
        uuid=str(uuid.UUID(bytes=own)),
        received_uuid=str(uuid.UUID(bytes=received)) if any(received) else None,
        read_only=bool(flags & _READ_ONLY),
    )


def read(path: Path) -> TreeInfo | None:
    """The subvolume whose root is `path`; None when it is something else or is gone.

    OSError when the kernel can't say (damaged file system, no permission).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        if os.fstat(descriptor).st_ino != _ROOT_INODE:
            return None
        answer = bytearray(_SIZE)
        fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, answer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENOENT):  # not btrfs; just deleted
            return None
        raise
    finally:
        os.close(descriptor)
    return parse(bytes(answer))
