"""Inodes with flags that no send stream carries, and that a receive on top of them fails at.

They are found by the inodes' items (`tree_search`): no path is looked up and no file is opened. It
needs root.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from standfast.btrfs.tree_search import SUBVOLUME, Search
from standfast.system.clock import Deadline

NODATASUM, NODATACOW, IMMUTABLE, APPEND = 1 << 0, 1 << 1, 1 << 6, 1 << 7
"""Of an inode's item (linux/btrfs_tree.h). A file has the first two by `chattr +C` or by a mount
option."""
LETTERS: Mapping[int, str] = {IMMUTABLE: "+i", APPEND: "+a", NODATACOW: "+C"}
HINDERING = NODATASUM | NODATACOW | IMMUTABLE | APPEND

_FIRST, _LAST = 256, 2**64 - 257
_INODE_ITEM = 1
_ITEM = struct.Struct("=16xQ28xI8xQ")  # struct btrfs_inode_item: size, mode, flags
_LOOKUP_BYTES = 4096
_LOOKUP_HEAD = struct.Struct("=QQ")  # tree, object; then the path
_INO_LOOKUP = (3 << 30) | (_LOOKUP_BYTES << 16) | (0x94 << 8) | 18  # _IOWR(0x94, 18, args)
_LOOK_UP_EVERY = 1000

# linux/fs.h, as chattr has them
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_FS_FLAGS = struct.Struct("=i")
_FS_PINNED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL
_FS_HINDERING = _FS_PINNED | 0x00800000  # FS_NOCOW_FL


@dataclass(frozen=True, slots=True)
class Flagged:
    """An inode with some of HINDERING."""

    inode: int
    mode: int
    size: int
    flags: int

    @property
    def letters(self) -> str:
        """Returns its flags as chattr writes them."""
        return "".join(letter for flag, letter in LETTERS.items() if self.flags & flag)


def flagged(subvolume: int, deadline: Deadline) -> Iterator[Flagged]:
    """Yields the inodes with such flags, of an open subvolume; ends early at the deadline.

    OSError without root, or where this is no btrfs.
    """
    search = Search(subvolume, SUBVOLUME)
    at, looked_at = _FIRST, 0
    while at <= _LAST:
        item = search.first((at, _LAST), _INODE_ITEM)
        if item is None:
            return
        if item.kind == _INODE_ITEM:
            size, mode, flags = search.unpacked(_ITEM)
            if flags & HINDERING:
                yield Flagged(item.number, mode, size, flags)
        at, looked_at = item.number + 1, looked_at + 1
        if looked_at % _LOOK_UP_EVERY == 0 and deadline.remaining_s() <= 0:
            return


def path_of(subvolume: int, inode: int) -> str:
    """Returns a path of an inode in an open subvolume, "." for its root; OSError when it has none
    (any more), or one too long to be told."""
    if inode == _FIRST:
        return "."
    answer = bytearray(_LOOKUP_BYTES)
    _LOOKUP_HEAD.pack_into(answer, 0, 0, inode)
    fcntl.ioctl(subvolume, _INO_LOOKUP, answer)
    return os.fsdecode(bytes(answer[_LOOKUP_HEAD.size :]).partition(b"\0")[0].rstrip(b"/"))


def take_off(path: Path, deadline: Deadline) -> int:
    """Takes such flags off everything in the writable subvolume `path`; returns how many inodes
    keep some.

    Those are files with data and no checksums, which the kernel lets only an empty file change.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return sum(not _take_off(root, inode) for inode in flagged(root, deadline))
    finally:
        os.close(root)


def _take_off(root: int, inode: Flagged) -> bool:
    if not stat.S_ISREG(inode.mode) and not stat.S_ISDIR(inode.mode):
        return False
    stays = stat.S_ISREG(inode.mode) and inode.size > 0 and bool(inode.flags & NODATASUM)
    if stays and not inode.flags & (IMMUTABLE | APPEND):
        return False
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path_of(root, inode.inode), flags, dir_fd=root)
    except OSError:
        return False
    try:
        has = bytearray(_FS_FLAGS.size)
        fcntl.ioctl(descriptor, _GETFLAGS, has)
        kept = _FS_FLAGS.unpack(has)[0] & ~_FS_HINDERING
        fcntl.ioctl(descriptor, _SETFLAGS, _FS_FLAGS.pack(kept))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return not stays


def is_pinned(path: Path) -> bool:
    """Tells whether a directory itself is immutable or append-only (`chattr +i`, `+a`), and neither
    it nor what is in it can be renamed; OSError where it can't be looked at. It needs no root, and
    a file system without such flags pins nothing."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        has = bytearray(_FS_FLAGS.size)
        fcntl.ioctl(directory, _GETFLAGS, has)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(directory)
    return bool(_FS_FLAGS.unpack(has)[0] & _FS_PINNED)


def examples(path: Path, most: int, deadline: Deadline) -> tuple[str, ...]:
    """Returns up to `most` of such inodes in the subvolume `path`, as `+i DIRECTORY/FILE`; OSError
    as `flagged`.

    What was changed in the last 30 s may be missing, and files without checksums by a mount option.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        telling = (inode for inode in flagged(root, deadline) if inode.letters)
        return tuple(
            f"{inode.letters} {_told(root, inode.inode)}" for inode in islice(telling, most)
        )
    finally:
        os.close(root)


def _told(root: int, inode: int) -> str:
    try:
        return path_of(root, inode)
    except OSError:
        return f"(inode {inode})"
