"""How much room a volume's file system has left, and when that is too little (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]

MIB = 2**20
LEAST_BYTES = 64 * MIB
"""Twice what a receive leaves free at least (`receive_checks.RESERVE_BYTES`)."""
LEAST_SHARE = 0.05
MOST_LEAST_BYTES = 10 * 2**30
"""As btrfs gives room to data by 1 GiB at most, a larger share would only be wasted."""


class Space(Struct, frozen=True):
    """Room in a file system, bytes. What nobody has yet is told as both data's and metadata's."""

    size: Bytes
    """For data, if it were empty."""
    data: Bytes
    """What data can still take."""
    metadata: Bytes | None = None
    """What metadata can still take beside `reserve`; None: this kind has no limit of its own."""
    reserve: Bytes = 0
    """The kernel keeps as much metadata back, so that what has begun can end."""


class Shortage(Struct, frozen=True):
    """Which room is short, and what mends it."""

    evidence: str
    fix: str


def shortages(space: Space) -> Iterator[Shortage]:
    """Yields what makes a file system nearly full.

    Data: less than 5 % of the size, at most 10 GiB, are left. Metadata: less than the kernel's
    reserve a second time. The reserve is its own estimate of what one transaction takes (up to
    512 MiB), and a receive or a promotion is several; when it is all that is left, every change,
    deleting too, ends with ENOSPC, while `df` may still show room.
    """
    least = max(LEAST_BYTES, min(int(space.size * LEAST_SHARE), MOST_LEAST_BYTES))
    if space.data < least:
        yield Shortage(
            f"{space.data // MIB} MiB are left for data of {space.size // MIB}, fewer than "
            f"{least // MIB}: writes will soon fail with ENOSPC",
            "delete old snapshots (standfast prune), or make the file system larger",
        )
    least = max(LEAST_BYTES, space.reserve)
    if space.metadata is not None and space.metadata < least:
        yield Shortage(
            f"{space.metadata // MIB} MiB are left for metadata, fewer than {least // MIB}, beside "
            f"the {space.reserve // MIB} that the kernel keeps: writes will soon fail with ENOSPC, "
            f"whatever `df` says",
            "btrfs balance start -dusage=20 on its mount point gives back what data holds and "
            "doesn't use; or delete old snapshots (standfast prune); or make it larger",
        )
