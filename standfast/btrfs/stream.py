"""What a btrfs send stream says, without receiving it: for sizes, never for trust.

Format: linux/fs/btrfs/send.h, versions 1 to 3. Checksums are left to `btrfs receive`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

MAGIC = b"btrfs-stream\0"
NEWEST_VERSION = 3
MAX_COMMAND_BYTES = 64 * 1024 * 1024
"""No command of any version comes near this; a longer one is no stream of btrfs."""
HEADER = struct.Struct("<13sI")
COMMAND = struct.Struct("<IHI")
ATTRIBUTE = struct.Struct("<HH")
_NUMBER = struct.Struct("<Q")

# Commands
SUBVOL, SNAPSHOT, MKFILE, SYMLINK, WRITE, CLONE, END, UPDATE_EXTENT = 1, 2, 3, 8, 15, 16, 21, 22
# Attributes
UUID, CTRANSID, INO, SIZE, PATH, PATH_LINK, FILE_OFFSET, DATA = 1, 2, 3, 4, 15, 17, 18, 19
CLONE_UUID, CLONE_CTRANSID, CLONE_PATH, CLONE_OFFSET, CLONE_LEN = 20, 21, 22, 23, 24


class Command(NamedTuple):
    """One command of a stream; `body` are its attributes as they came."""

    kind: int
    body: bytes


def commands(stream: IO[bytes]) -> Iterator[Command]:
    """Yields every command up to the end mark; ValueError when this is no stream, or not a whole
    one."""
    magic, version = HEADER.unpack(_exactly(stream, HEADER.size))
    if magic != MAGIC:
        raise ValueError(f"not a stream of btrfs: it begins with {magic!r}")
    if version > NEWEST_VERSION:
        raise ValueError(f"version {version} of the stream is not known (up to {NEWEST_VERSION})")
    while True:
        length, kind, _ = COMMAND.unpack(_exactly(stream, COMMAND.size))
        if length > MAX_COMMAND_BYTES:
            raise ValueError(f"a command of {length} bytes is not one of btrfs")
        yield Command(kind, _exactly(stream, length))
        if kind == END:
            return


def attribute(body: bytes, wanted: int) -> bytes | None:
    """Returns the value of a command's attribute, None when it has none. Not for DATA of
    version 2."""
    at = 0
    while at + ATTRIBUTE.size <= len(body):
        kind, length = ATTRIBUTE.unpack_from(body, at)
        at += ATTRIBUTE.size
        if kind == wanted:
            return body[at : at + length]
        at += length
    return None


def size_from_outline(stream: IO[bytes]) -> int:
    """Returns about the bytes of the stream whose `btrfs send --no-data` this is; ValueError as
    above.

    Such a stream has, instead of each piece of data, a command with the piece's length.
    """
    total = HEADER.size
    for kind, body in commands(stream):
        total += COMMAND.size + len(body)
        if kind == UPDATE_EXTENT:
            size = attribute(body, SIZE)
            if size is None or len(size) != _NUMBER.size:
                raise ValueError("a command says of no length which data it stands for")
            total += int(_NUMBER.unpack(size)[0])
    return total


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("the stream ends before its end mark")
    return data


COMPRESSED_DATA = "compressed-data"
"""The ability to take extents in as they are compressed."""
