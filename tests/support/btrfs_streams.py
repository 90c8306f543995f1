"""Writes send streams of btrfs command by command, also such as no btrfs would send."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from standfast.btrfs import stream as format_


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """As btrfs computes it: from zero, without a final inversion."""
    crc = 0
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


def header(version: int = 1) -> bytes:
    return format_.HEADER.pack(format_.MAGIC, version)


def command(kind: int, attributes: Mapping[int, bytes] | None = None) -> bytes:
    body = b"".join(
        format_.ATTRIBUTE.pack(name, len(value)) + value
        for name, value in (attributes or {}).items()
    )
    unsigned = format_.COMMAND.pack(len(body), kind, 0) + body
    return format_.COMMAND.pack(len(body), kind, crc32c(unsigned)) + body


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def subvolume(name: str, identity: uuid.UUID) -> bytes:
    return command(
        format_.SUBVOL,
        {
            format_.PATH: name.encode(),
            format_.UUID: identity.bytes,
            format_.CTRANSID: number(7),
        },
    )


def increment(name: str, identity: uuid.UUID, parent: uuid.UUID) -> bytes:
    """Begins as a snapshot of the received subvolume `parent`."""
    return command(
        format_.SNAPSHOT,
        {
            format_.PATH: name.encode(),
            format_.UUID: identity.bytes,
            format_.CTRANSID: number(8),
            format_.CLONE_UUID: parent.bytes,
            format_.CLONE_CTRANSID: number(7),
        },
    )


def reflink(path: str, source: uuid.UUID, source_path: str, length: int) -> bytes:
    """Two commands: make the file, have it share the data of one of the subvolume `source`."""
    named = {format_.PATH: path.encode()}
    return command(format_.MKFILE, {**named, format_.INO: number(302)}) + command(
        format_.CLONE,
        {
            format_.FILE_OFFSET: number(0),
            format_.CLONE_LEN: number(length),
            **named,
            format_.CLONE_UUID: source.bytes,
            format_.CLONE_CTRANSID: number(7),
            format_.CLONE_PATH: source_path.encode(),
            format_.CLONE_OFFSET: number(0),
        },
    )


def file(path: str, content: bytes) -> bytes:
    """Two commands: make it, write it."""
    named = {format_.PATH: path.encode()}
    return command(format_.MKFILE, {**named, format_.INO: number(300)}) + command(
        format_.WRITE, {**named, format_.FILE_OFFSET: number(0), format_.DATA: content}
    )


def symlink(path: str, to: str) -> bytes:
    return command(
        format_.SYMLINK,
        {
            format_.PATH: path.encode(),
            format_.INO: number(301),
            format_.PATH_LINK: to.encode(),
        },
    )


def end() -> bytes:
    return command(format_.END)
