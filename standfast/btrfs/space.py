"""How full a btrfs is, for data and for metadata, by ioctls that need no privilege.

`statvfs` tells of data only: a file system whose metadata is full, on which nothing can be written,
may still show free bytes (seen on Linux 6.18 with metadata kept twice).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from standfast.node.space import Space

# linux/btrfs.h
_SPACE_HEAD = struct.Struct("=QQ")  # space_slots, total_spaces
_SPACE = struct.Struct("=QQQ")  # flags, total_bytes, used_bytes
_SPACE_INFO = (3 << 30) | (_SPACE_HEAD.size << 16) | (0x94 << 8) | 20  # _IOWR(0x94, 20, args)
_FS_INFO_SIZE = 1024
_FS_INFO_HEAD = struct.Struct("=QQ")  # max_id, num_devices
_FS_INFO = (2 << 30) | (_FS_INFO_SIZE << 16) | (0x94 << 8) | 31  # _IOR(0x94, 31, args)
_DEVICE_SIZE = 4096
_DEVICE = struct.Struct("=Q16sQQ")  # devid, uuid, bytes_used, total_bytes
_DEV_INFO = (3 << 30) | (_DEVICE_SIZE << 16) | (0x94 << 8) | 30  # _IOWR(0x94, 30, args)
_MORE_KINDS = 8
"""Between two questions a kind of chunks may have come up."""

DATA, METADATA, RESERVE = 1 << 0, 1 << 2, 1 << 49
_TWICE = 1 << 4 | 1 << 5 | 1 << 6  # RAID1, DUP, RAID10
_THREE_TIMES, _FOUR_TIMES = 1 << 9, 1 << 10
_APART = 1 << 4 | 1 << 6 | _THREE_TIMES | _FOUR_TIMES  # each copy on another device


@dataclass(frozen=True, slots=True)
class Kind:
    """The chunks of one kind and profile, bytes that can be used: copies don't count."""

    flags: int
    total: int
    used: int

    @property
    def copies(self) -> int:
        for flags, copies in ((_TWICE, 2), (_THREE_TIMES, 3), (_FOUR_TIMES, 4)):
            if self.flags & flags:
                return copies
        return 1

    @property
    def is_apart(self) -> bool:
        return bool(self.flags & _APART)


def space_of(kinds: Sequence[Kind], devices: Sequence[tuple[int, int]]) -> Space:
    """Returns the room from what the kernel says; `devices`: bytes allocated, and of all, of each.

    Upper bounds where RAID5 or RAID6 is used, whose parity isn't counted.
    """
    reserve = sum(kind.total for kind in kinds if kind.flags & RESERVE)
    data = [kind for kind in kinds if kind.flags & DATA]
    metadata = [kind for kind in kinds if kind.flags & METADATA]
    free = [max(0, total - allocated) for allocated, total in devices]
    left_metadata = _left(metadata) + _usable(free, metadata) - reserve
    return Space(
        size=_usable([total for _, total in devices], data),
        data=_left(data) + _usable(free, data),
        metadata=max(0, left_metadata),
        reserve=reserve,
    )


def _left(kinds: Sequence[Kind]) -> int:
    return sum(kind.total - kind.used for kind in kinds)


def _usable(devices: Sequence[int], kinds: Sequence[Kind]) -> int:
    """How much of so many bytes on each device is left when every piece is there in all copies."""
    copies = max((kind.copies for kind in kinds), default=1)
    bound = sum(devices) // copies
    if copies > 1 and any(kind.is_apart for kind in kinds):
        # What the largest device has more than the others together has no place for its copies.
        bound = min(bound, (sum(devices) - max(devices)) // (copies - 1))
    return bound


def read_space(path: Path) -> Space | None:
    """Returns the room in the btrfs that has the directory `path`; None when that is no btrfs."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return space_of(list(_kinds(descriptor)), list(_devices(descriptor)))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise
    finally:
        os.close(descriptor)


def _kinds(descriptor: int) -> Iterator[Kind]:
    head = bytearray(_SPACE_HEAD.size)
    fcntl.ioctl(descriptor, _SPACE_INFO, head)
    slots = _SPACE_HEAD.unpack(head)[1] + _MORE_KINDS
    answer = bytearray(_SPACE_HEAD.size + slots * _SPACE.size)
    _SPACE_HEAD.pack_into(answer, 0, slots, 0)
    fcntl.ioctl(descriptor, _SPACE_INFO, answer)
    for number in range(_SPACE_HEAD.unpack_from(answer)[1]):
        yield Kind(*_SPACE.unpack_from(answer, _SPACE_HEAD.size + number * _SPACE.size))


def _devices(descriptor: int) -> Iterator[tuple[int, int]]:
    answer = bytearray(_FS_INFO_SIZE)
    fcntl.ioctl(descriptor, _FS_INFO, answer)
    highest, count = _FS_INFO_HEAD.unpack_from(answer)
    for number in range(highest + 1):  # 0: a device that is about to take another one's place
        if not count:
            return
        told = bytearray(_DEVICE_SIZE)
        _DEVICE.pack_into(told, 0, number, b"", 0, 0)
        try:
            fcntl.ioctl(descriptor, _DEV_INFO, told)
        except OSError:  # numbers of devices that were taken out stay unused
            continue
        _, _, allocated, total = _DEVICE.unpack_from(told)
        count -= 1
        yield allocated, total
