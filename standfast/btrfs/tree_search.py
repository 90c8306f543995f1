"""Items of btrfs' trees by BTRFS_IOC_TREE_SEARCH_V2, one for each call (some 200,000 a second).

It needs root.
"""

from __future__ import annotations

import fcntl
import struct
from typing import NamedTuple

SUBVOLUME = 0
"""The tree of the subvolume that the descriptor is of."""
QUOTA = 8
LAST = 2**64 - 1

# struct btrfs_ioctl_search_args_v2: the key (tree, ranges of object, offset and transaction, range
# of type, number of items, reserved), the buffer's size, the buffer.
_KEY = struct.Struct("=QQQQQQQIII36xQ")
_ARGS_BYTES = 112
_COUNT = struct.Struct("=I")
_COUNT_AT = 64
_ITEM_HEAD = struct.Struct("=QQQII")  # transaction, object, offset, type, length
_DATA_AT = _ARGS_BYTES + _ITEM_HEAD.size
_BUFFER_BYTES = 512
_SEARCH = (3 << 30) | (_ARGS_BYTES << 16) | (0x94 << 8) | 17  # _IOWR(0x94, 17, args)


class Item(NamedTuple):
    """A key; for its data ask `unpacked` before the next search."""

    number: int
    """Of the object: an inode's, a group's."""
    kind: int
    offset: int


class Search:
    """Searches one tree of the file system that an open file is of."""

    def __init__(self, descriptor: int, tree: int) -> None:
        self._descriptor = descriptor
        self._tree = tree
        self._args = bytearray(_ARGS_BYTES + _BUFFER_BYTES)

    def first(self, objects: tuple[int, int], kind: int, offset: int = 0) -> Item | None:
        """Returns the first item from (objects[0], kind, offset) to (objects[1], kind, LAST), of
        whichever kind; OSError where there is no such tree, without root, or where this is no
        btrfs."""
        key = (self._tree, *objects, offset, LAST, 0, LAST, kind, kind, 1)
        _KEY.pack_into(self._args, 0, *key, _BUFFER_BYTES)
        fcntl.ioctl(self._descriptor, _SEARCH, self._args)
        if _COUNT.unpack_from(self._args, _COUNT_AT)[0] == 0:
            return None
        _, number, offset, kind, _ = _ITEM_HEAD.unpack_from(self._args, _ARGS_BYTES)
        return Item(number, kind, offset)

    def unpacked(self, form: struct.Struct) -> tuple[int, ...]:
        """Returns the data of the item that was found last."""
        return form.unpack_from(self._args, _DATA_AT)
